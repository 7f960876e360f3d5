-- Statements over several shards whose answers must be PostgreSQL's, one a line.
SELECT * FROM items
SELECT count(*) FROM items
SELECT count(*), sum(price), avg(big), min(name), max(at) FROM items WHERE grp IN (1, 2) AND NOT flag
SELECT grp, count(*), sum(big) FROM items GROUP BY grp HAVING count(*) > 5 ORDER BY grp
SELECT i.name, o.qty FROM items i JOIN orders o ON o.item = i.id WHERE o.qty > 7 AND i.grp < 4
SELECT i.id, o.id FROM items i LEFT JOIN orders o ON o.item = i.id AND o.qty > 8 WHERE i.grp = 3
SELECT i.id, o.id FROM orders o RIGHT JOIN items i ON o.item = i.id WHERE o.id IS NULL
SELECT i.id, o.id FROM orders o FULL JOIN items i ON o.item = i.id WHERE coalesce(o.qty, 9) > 8
SELECT id, qty FROM orders JOIN items USING (id) WHERE id < 120 AND qty > 3
SELECT count(*) FROM orders NATURAL JOIN items WHERE id > 3
SELECT i.* FROM items i WHERE EXISTS (SELECT 1 FROM orders o WHERE o.item = i.id AND o.qty = 9 AND i.grp > 2)
SELECT (SELECT max(qty) FROM orders o WHERE o.item = i.id), i.id FROM items i WHERE i.id BETWEEN 40 AND 60 ORDER BY i.id
WITH items AS (SELECT id, grp FROM items WHERE grp > 2) SELECT k.label, count(*) FROM items JOIN kinds k ON k.k = grp GROUP BY k.label
WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 5) SELECT n, i.name FROM up JOIN items i ON i.id = n * 40
SELECT grp, name, row_number() OVER (PARTITION BY grp ORDER BY id) FROM items WHERE id % 3 = 0 ORDER BY grp, name, 3
SELECT id FROM items WHERE flag UNION SELECT item FROM orders WHERE qty = 1 EXCEPT SELECT k FROM kinds
SELECT DISTINCT ON (grp) grp, id, mood FROM items ORDER BY grp, id DESC
SELECT mood, array_agg(id ORDER BY id) FROM items GROUP BY mood ORDER BY mood
SELECT i.mood, i.tags, i.extra->'a' FROM items i WHERE mood >= 'ok' AND 3 = ANY(tags)
SELECT items FROM items WHERE id < 60
SELECT row_to_json(i) FROM items i WHERE id > 230
SELECT public.items.id FROM public.items WHERE public.items.grp = 2
SELECT a.id, b.id FROM items a, items b WHERE a.id = b.id + 100 AND a.grp = 1 AND b.grp = 2
SELECT id, name, grp FROM items GROUP BY id ORDER BY id LIMIT 7 OFFSET 48
SELECT x.a, x.b FROM items AS x (a, b) WHERE b = 5
SELECT * FROM priced WHERE twice > 500
SELECT p.key, t.total FROM priced p JOIN totals t ON t.item = p.key ORDER BY p.key
SELECT twice(grp) FROM items WHERE twice(grp) > 8
SELECT id FROM items WHERE name LIKE E'n\t1%' OR name ILIKE '%É%4'
SELECT grp, GROUPING(grp, flag), count(*) FROM items GROUP BY ROLLUP (grp, flag)
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ratio), string_agg(name, ',' ORDER BY id) FROM items WHERE id < 70
SELECT s.i, (SELECT count(*) FROM items WHERE grp = s.i) FROM generate_series(1, 3) s(i)
SELECT id FROM items ORDER BY price DESC NULLS LAST, id FETCH FIRST 5 ROWS ONLY
SELECT l.* FROM items i, LATERAL (SELECT o.id FROM orders o WHERE o.item = i.id ORDER BY o.id LIMIT 1) l
SELECT (SELECT relname FROM pg_class WHERE oid = 'items'::regclass), count(*) FROM items
SELECT 1 / (id - id) FROM items
SELECT name::int FROM items
SELECT (i).price, (i).mood FROM items i WHERE (i).id = 77 OR i.id = 177
SELECT count(i) FROM items i LEFT JOIN orders o ON false
SELECT now() - now(), current_date - current_date, count(*) FROM items
VALUES (1, (SELECT count(*) FROM items)), (2, (SELECT count(*) FROM orders))
SELECT a || name = 'xn' FROM (SELECT 'x' AS a, name FROM items WHERE 'x' || name > 'xn' AND NOT grp = 2) q
