-- Joins of sharded tables on tier 2's list, one a line.
SELECT i.name, o.qty FROM items i JOIN orders o ON o.item = i.id WHERE o.qty > 7 AND i.grp < 4
SELECT i.id, o.id FROM items i, orders o WHERE o.item = i.id AND i.flag
SELECT i.id, o.id, o.qty FROM items i LEFT JOIN orders o ON o.item = i.id AND o.qty > 8 WHERE i.grp = 3
SELECT i.id, o.note FROM items i LEFT JOIN orders o ON i.id = o.item ORDER BY i.id, o.id NULLS FIRST
SELECT i.name, o.qty, i.price FROM items i JOIN orders o ON o.id = i.id ORDER BY i.price DESC, i.id LIMIT 17 OFFSET 4
SELECT count(*), sum(o.qty), avg(i.price), min(i.name), max(o.note), count(i.price) FROM items i JOIN orders o ON o.item = i.id
SELECT count(*), count(o.id), sum(o.qty), avg(o.qty), max(o.qty) FROM items i LEFT JOIN orders o ON o.item = i.id
SELECT i.grp, count(*), sum(o.qty), sum(i.price) FROM items i JOIN orders o ON o.item = i.id GROUP BY i.grp ORDER BY i.grp
SELECT i.grp, count(o.id) AS n FROM items i LEFT JOIN orders o ON o.item = i.id GROUP BY i.grp ORDER BY n DESC, i.grp LIMIT 3
SELECT DISTINCT i.grp, o.qty FROM items i JOIN orders o ON o.item = i.id ORDER BY 1, 2
SELECT a.id, b.id FROM items a, items b WHERE a.id = b.id AND a.grp = 1
SELECT a.id, b.id, o.id FROM items a JOIN items b ON a.grp = b.grp AND a.name = b.name JOIN orders o ON o.item = b.id WHERE a.id < 60
SELECT a.id, b.id FROM items a JOIN items b ON a.price = b.price
SELECT a.id, b.id FROM items a JOIN items b ON a.day = b.day AND a.ratio = b.ratio
SELECT upper(i.name), o.qty * 2 FROM items i JOIN orders o ON o.item = i.id WHERE o.qty BETWEEN 3 AND 5
SELECT sum(i.big) FROM items i JOIN orders o ON o.item = i.id WHERE i.id > 100000
SELECT i.id FROM items i JOIN orders o ON o.item = i.id JOIN orders p ON p.id = i.id WHERE p.qty = 3
SELECT i.mood, o.qty FROM items i JOIN orders o ON o.item = i.id WHERE i.mood = 'ok'
SELECT 1, i.id FROM items i JOIN orders o ON o.item = i.id LIMIT 0
