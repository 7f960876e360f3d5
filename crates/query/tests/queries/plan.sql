-- Statements of tier 2's list, one a line: run by the shards and put together in the gateway.
SELECT id, name FROM items WHERE grp = 3
SELECT * FROM items WHERE id BETWEEN 40 AND 160
SELECT id + 1, upper(name), price * 2 FROM items WHERE price > 0 AND flag
SELECT id, mood FROM items WHERE mood = 'ok'
SELECT id FROM items ORDER BY id LIMIT 10
SELECT id FROM items ORDER BY id DESC LIMIT 10 OFFSET 95
SELECT id, price FROM items ORDER BY price, id
SELECT id, id::text || name, id::numeric(9, 2) AS scaled FROM items ORDER BY id
SELECT id, price FROM items ORDER BY price DESC, id LIMIT 30
SELECT id, price FROM items ORDER BY price ASC NULLS FIRST, id DESC LIMIT 60
SELECT id, name FROM items ORDER BY name DESC NULLS LAST, id
SELECT id, ratio, day, at, code, flag FROM items ORDER BY flag, ratio, day, at, code, id
SELECT name AS n, id FROM items ORDER BY n, 2
SELECT id FROM items ORDER BY at DESC, day, id OFFSET 200
SELECT id FROM items WHERE id < 0 ORDER BY id
SELECT grp FROM items ORDER BY big, id
SELECT id % 7 AS m, id FROM items ORDER BY m, id LIMIT 9
SELECT id FROM items ORDER BY id LIMIT 0
SELECT id FROM items ORDER BY id FETCH FIRST ROW ONLY
SELECT count(*) FROM items
SELECT count(*), count(name), sum(grp), sum(big), sum(price), avg(grp), avg(big), avg(price) FROM items
SELECT min(id), max(id), min(name), max(name), min(price), max(price), min(at), max(at), min(day), max(ratio) FROM items
SELECT count(*), sum(big), avg(price), min(name) FROM items WHERE id > 100000
SELECT sum(price), count(*) FROM items WHERE id BETWEEN 45 AND 55
SELECT avg(id) FROM items WHERE id < 3
SELECT sum(id), avg(id * 1000000), avg(price / 3) FROM items WHERE grp > 3
SELECT count(*) FROM items LIMIT 0
SELECT grp, count(*) FROM items GROUP BY grp
SELECT grp, count(*) FROM items GROUP BY 1 ORDER BY 1
SELECT grp, count(*) AS n FROM items GROUP BY grp ORDER BY n DESC, grp LIMIT 4
SELECT grp, flag, sum(price), avg(big), min(name), max(at) FROM items GROUP BY grp, flag ORDER BY grp, flag
SELECT name, count(*) FROM items GROUP BY name ORDER BY count(*) DESC, name
SELECT sum(price) FROM items GROUP BY grp ORDER BY sum(price)
SELECT max(name), grp FROM items GROUP BY grp ORDER BY max(name) DESC, grp
SELECT id % 10, count(*), avg(id) FROM items GROUP BY id % 10 ORDER BY 1
SELECT price, count(*) FROM items GROUP BY price ORDER BY price OFFSET 3 LIMIT 20
SELECT ratio, code, day FROM items GROUP BY ratio, code, day ORDER BY ratio, code, day
SELECT DISTINCT grp FROM items
SELECT DISTINCT grp, flag FROM items ORDER BY grp DESC, flag
SELECT DISTINCT price FROM items ORDER BY price LIMIT 12
SELECT DISTINCT name, upper(name) FROM items ORDER BY 1 OFFSET 5
SELECT count(*) FROM items GROUP BY grp HAVING count(*) > 3
SELECT sum(ratio) FROM items
SELECT grp, sum(price) / count(*) FROM items GROUP BY grp ORDER BY grp
SELECT i.id, i.grp FROM public.items i WHERE i.grp IS NULL OR i.grp NOT IN (1, 2, 3) ORDER BY i.id
SELECT 'x', id FROM items WHERE CASE WHEN flag THEN grp > 2 ELSE id > 100 END
SELECT id / (id - 70) FROM items
SELECT sum(big * 8) FROM items
SELECT count(DISTINCT grp) FROM items
SELECT id FROM items WHERE name IS NOT NULL ORDER BY length(name), id LIMIT 3
SELECT sum(id::int8 * 100000000000000) FROM items
SELECT sum(9000000000000000 + id) FROM items
SELECT sum(2147483647 * (id % 2)) FROM items
