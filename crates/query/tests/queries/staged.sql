-- colocated tables, groups that lie on several shards
SELECT l.kind, count(*), count(l.qty), sum(l.qty), avg(l.qty), min(l.price), max(l.price), sum(l.price), avg(l.price) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY l.kind ORDER BY l.kind
SELECT count(*), sum(qty), avg(qty), min(kind), max(day) FROM orders o JOIN lines l ON o.id = l.order_id WHERE qty > 100
SELECT count(*), sum(qty) + 1, round(avg(price), 3) FROM orders o JOIN lines l ON l.order_id = o.id WHERE day > date '2024-03-01'
SELECT extract(month FROM o.day) AS month, count(*) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY month ORDER BY month
SELECT extract(month FROM o.day), l.kind, sum(qty * price) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY 1, 2 ORDER BY 1 DESC NULLS LAST, 2 NULLS FIRST
SELECT kind, sum(price) AS s FROM orders o, lines l WHERE o.id = l.order_id GROUP BY kind HAVING sum(price) > 100 AND count(*) > 3 ORDER BY s DESC LIMIT 3
SELECT kind, sum(price) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY kind ORDER BY sum(price) / count(*) DESC, kind OFFSET 1
SELECT count(DISTINCT customer), count(DISTINCT kind), sum(DISTINCT qty), count(*) FROM orders o, lines l WHERE o.id = l.order_id
SELECT kind, count(DISTINCT customer), max(DISTINCT qty) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY kind ORDER BY kind
SELECT sum(weight), avg(weight), count(*) FROM orders o, lines l WHERE o.id = l.order_id
SELECT CASE WHEN kind = 'k1' THEN 'one' ELSE 'other' END AS what, count(*) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY CASE WHEN kind = 'k1' THEN 'one' ELSE 'other' END ORDER BY what
SELECT 100.00 * sum(CASE WHEN kind LIKE 'k1%' THEN price * (1 - 0.1) ELSE 0 END) / sum(price) FROM orders o, lines l WHERE o.id = l.order_id
-- groups that are whole on a shard
SELECT o.id, sum(qty) AS total, o.day FROM orders o, lines l WHERE o.id = l.order_id GROUP BY o.id, o.day HAVING sum(qty) > 5 ORDER BY total DESC, o.id LIMIT 7 OFFSET 2
SELECT order_id, count(*) FROM lines l GROUP BY order_id ORDER BY count(*) DESC, order_id LIMIT 5
SELECT DISTINCT o.id, o.customer FROM orders o, lines l WHERE o.id = l.order_id AND l.qty > 3 ORDER BY o.customer NULLS FIRST, o.id LIMIT 9
SELECT o.id, o.note, l.n FROM orders o, lines l WHERE o.id = l.order_id ORDER BY l.price DESC NULLS LAST, o.id, l.n LIMIT 11
SELECT o.id AS a, o.id AS a, l.n FROM orders o, lines l WHERE o.id = l.order_id AND o.customer = 7 ORDER BY 1, 3
SELECT o.id FROM orders o LEFT JOIN lines l ON l.order_id = o.id AND l.qty > 5 WHERE l.order_id IS NULL ORDER BY o.id
SELECT count(*), count(l.n), sum(l.qty) FROM orders o LEFT JOIN lines l ON o.id = l.order_id AND l.kind = 'k2'
SELECT o.customer, count(l.n) FROM orders o LEFT JOIN lines l ON o.id = l.order_id GROUP BY o.customer ORDER BY o.customer
-- others are sent along
SELECT c.name, sum(l.price) AS s FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.name ORDER BY s DESC NULLS LAST, c.name LIMIT 10
SELECT r.label, c.code, sum(l.qty * l.price) FROM customers c, orders o, lines l, regions r WHERE c.id = o.customer AND l.order_id = o.id AND c.region = r.id AND r.label IN ('region 1', 'region 3') GROUP BY r.label, c.code ORDER BY r.label, c.code
SELECT c.code, count(*) FROM orders o JOIN customers c ON c.id = o.customer JOIN lines l ON l.order_id = o.id WHERE c.balance > 0 AND l.qty BETWEEN 2 AND 7 GROUP BY c.code ORDER BY c.code
SELECT c.name, o.id FROM customers c LEFT JOIN orders o ON o.customer = c.id AND o.note = 'note 3' ORDER BY c.name, o.id NULLS LAST
SELECT c.id, count(o.id) FROM customers c LEFT JOIN orders o ON o.customer = c.id AND o.note NOT LIKE '%3%' GROUP BY c.id ORDER BY c.id
SELECT n, count(*) FROM (SELECT c.id, count(o.id) FROM customers c LEFT JOIN orders o ON o.customer = c.id AND o.note NOT LIKE '%3%' GROUP BY c.id) AS counted (id, n) GROUP BY n ORDER BY n
SELECT a.name, b.name FROM customers a, customers b, orders o, lines l WHERE a.id = o.customer AND b.id = l.qty AND l.order_id = o.id AND ((a.region = 1 AND b.region = 2) OR (a.region = 2 AND b.region = 1)) ORDER BY 1, 2
SELECT sum(price) FROM lines l, customers c WHERE (c.id = l.qty AND c.code = 'c1' AND l.n = 0) OR (c.id = l.qty AND c.code = 'c2' AND l.n = 1)
SELECT what, y, sum(v) FROM (SELECT c.code AS what, extract(year FROM o.day) AS y, l.price * l.qty - 1 AS v FROM customers c, orders o, lines l WHERE c.id = o.customer AND o.id = l.order_id AND c.name LIKE '%1%') AS t GROUP BY what, y ORDER BY what, y
SELECT c.code || '!' AS shout, count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer AND o.id = l.order_id AND c.code = 'c3' GROUP BY c.code || '!'
SELECT length(c.code), c.code = 'c3   ', count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer AND o.id = l.order_id GROUP BY 1, 2 ORDER BY 1, 2
-- tables that only add columns to groups are joined to the groups
SELECT c.id, c.name, sum(l.qty * l.price) AS s, c.balance, c.code FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id AND l.qty > 1 GROUP BY c.id, c.name, c.balance, c.code ORDER BY s DESC NULLS LAST, c.id LIMIT 5
SELECT c.id, c.name, sum(l.price) AS s FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.id ORDER BY count(*) DESC, c.name, c.id LIMIT 7 OFFSET 2
SELECT c.name, o.customer, count(*), c.id FROM customers c JOIN orders o ON c.id = o.customer JOIN lines l ON l.order_id = o.id GROUP BY o.customer, c.name, c.id HAVING count(*) > 2 AND sum(l.qty) IS NOT NULL ORDER BY 3 DESC, customer LIMIT 100
SELECT o.customer, c.name, min(l.price) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY o.customer, c.name ORDER BY o.customer
SELECT c.id, max(l.kind), c.code, count(l.qty) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.id, c.code ORDER BY count(l.qty) DESC, c.id DESC LIMIT 3
SELECT DISTINCT c.code, count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.id, c.code ORDER BY 2 DESC, 1 LIMIT 4
SELECT c.id, c.balance + 1 AS more, sum(l.price) + max(c.balance) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.id ORDER BY c.id
SELECT a.id, a.name, b.name, count(*) FROM customers a, customers b, orders o, lines l WHERE a.id = o.customer AND b.id = a.region AND l.order_id = o.id GROUP BY a.id, a.name, b.name ORDER BY count(*) DESC, a.id LIMIT 6
-- groups that find no partner are not among the first
SELECT c.id, c.name, count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer + 15 AND l.order_id = o.id GROUP BY c.id, c.name ORDER BY count(*) DESC, c.id LIMIT 5
SELECT c.id, c.name, sum(l.qty) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id AND o.customer > 40 GROUP BY c.id, c.name ORDER BY sum(l.qty) DESC NULLS LAST, c.id LIMIT 10
SELECT o.customer, c.name, count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY o.customer, c.name ORDER BY o.customer DESC LIMIT 4
SELECT c.id, c.name, 1 / (sum(l.qty) - sum(l.qty) + c.id) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id AND c.id > 0 GROUP BY c.id, c.name ORDER BY c.id LIMIT 4
SELECT c.id, c.name, sum(1 / (74 - o.customer)) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id GROUP BY c.id, c.name ORDER BY c.id
SELECT c.id, c.name, count(*) FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id AND c.balance > 100 AND l.n < c.id GROUP BY c.id, c.name ORDER BY c.id
-- subqueries
SELECT o.note, count(*) FROM orders o WHERE EXISTS (SELECT * FROM lines l WHERE l.order_id = o.id AND l.qty < 4) GROUP BY o.note ORDER BY o.note
SELECT count(*) FROM orders o WHERE NOT EXISTS (SELECT 1 FROM lines l WHERE l.order_id = o.id)
SELECT count(*) FROM customers c WHERE NOT EXISTS (SELECT * FROM orders o WHERE o.customer = c.id)
SELECT c.id, c.balance FROM customers c WHERE c.balance > (SELECT avg(balance) FROM customers WHERE balance > 0) AND NOT EXISTS (SELECT * FROM orders o WHERE o.customer = c.id) ORDER BY c.id
SELECT count(*) FROM customers c WHERE c.id NOT IN (SELECT o.customer FROM orders o)
SELECT count(*) FROM customers c WHERE c.id NOT IN (SELECT o.customer FROM orders o WHERE o.customer IS NOT NULL)
SELECT count(*) FROM customers c WHERE c.id IN (SELECT o.customer FROM orders o WHERE o.id IN (SELECT l.order_id FROM lines l WHERE l.kind = 'k3'))
SELECT c.name, o.id, sum(l.qty) FROM customers c, orders o, lines l WHERE o.id IN (SELECT order_id FROM lines GROUP BY order_id HAVING sum(qty) > 12) AND c.id = o.customer AND o.id = l.order_id GROUP BY c.name, o.id ORDER BY sum(l.qty) DESC, o.id LIMIT 5
SELECT sum(l.price) / 7.0 FROM lines l, customers c WHERE c.id = l.qty AND c.code = 'c4' AND l.price < (SELECT 0.9 * avg(price) FROM lines WHERE qty = c.id)
SELECT c.name, o.id, c.region FROM customers c, orders o WHERE o.id IN (SELECT order_id FROM lines GROUP BY order_id HAVING sum(qty) > 14) AND c.id = o.customer ORDER BY o.id
SELECT count(*), min(o.day) FROM orders o, customers c WHERE c.id = o.customer AND c.id IN (SELECT qty FROM lines WHERE qty IS NULL OR price > 60) AND NOT (o.id IN (SELECT order_id FROM lines WHERE kind = 'k2'))
SELECT c.name FROM customers c WHERE c.id IN (SELECT o.customer FROM orders o WHERE o.id IN (SELECT order_id FROM lines WHERE n = 2 AND kind LIKE 'k_') AND o.weight > (SELECT 0.01 * sum(l.qty) FROM lines l WHERE l.order_id = o.id)) ORDER BY c.name
SELECT o.id FROM orders o WHERE o.customer IN (SELECT id FROM customers WHERE balance > 9999) ORDER BY o.id
SELECT o.id FROM orders o WHERE o.customer = (SELECT max(x.customer) FROM orders x, lines y WHERE x.id = y.order_id AND y.kind = 'k0') ORDER BY o.id
SELECT c.name FROM customers c WHERE c.id IN (SELECT o.customer FROM orders o WHERE o.weight > (SELECT 0.1 * sum(l.qty) FROM lines l WHERE l.order_id = o.id AND l.price > 5)) AND c.region = 2 ORDER BY c.name
SELECT s.name, count(*) AS n FROM customers s, lines l1, orders o WHERE s.id = l1.qty AND o.id = l1.order_id AND EXISTS (SELECT * FROM lines l2 WHERE l2.order_id = l1.order_id AND l2.qty <> l1.qty) AND NOT EXISTS (SELECT * FROM lines l3 WHERE l3.order_id = l1.order_id AND l3.qty <> l1.qty AND l3.price > 20) GROUP BY s.name ORDER BY n DESC, s.name
SELECT o.id, (SELECT count(*) FROM lines l WHERE l.order_id = o.id) FROM orders o WHERE o.customer = 14 ORDER BY o.id
SELECT o.id, (SELECT count(*) FROM lines) FROM orders o WHERE o.customer = 14 ORDER BY o.id
SELECT kind, sum(price) FROM lines GROUP BY kind HAVING sum(price) > (SELECT sum(price) * 0.2 FROM lines) ORDER BY kind
SELECT order_id, sum(price) AS s FROM lines l, customers c WHERE c.id = l.qty GROUP BY order_id HAVING sum(price) > (SELECT sum(price) * 0.005 FROM lines, customers WHERE customers.id = lines.qty) ORDER BY s DESC, order_id
SELECT count(*) FROM orders o WHERE o.id = ANY (SELECT l.order_id FROM lines l WHERE qty = 3)
SELECT count(*) FROM orders o WHERE (o.id, 1) IN (SELECT l.order_id, l.n FROM lines l)
SELECT c.id FROM customers c WHERE (SELECT count(*) FROM orders o WHERE o.customer = c.id) = 3 ORDER BY c.id
SELECT a.id FROM orders a WHERE EXISTS (SELECT 1 FROM orders b WHERE b.customer = a.customer AND b.id <> a.id AND b.day < a.day) ORDER BY a.id LIMIT 20
SELECT count(*) FROM orders a, orders b WHERE a.customer = b.customer AND a.id < b.id
SELECT a.id, b.id FROM orders a, orders b WHERE a.id = b.id AND a.customer > 70 ORDER BY 1
SELECT a.id, b.order_id FROM orders a, lines b, orders c WHERE a.id = b.order_id AND c.id = b.n ORDER BY 1, 2 LIMIT 10
SELECT o.id FROM orders o WHERE EXISTS (SELECT 1 FROM customers c WHERE c.id = o.customer AND EXISTS (SELECT 1 FROM lines l WHERE l.order_id = o.id AND l.qty = c.id)) ORDER BY o.id
-- WITH, views, set operations, windows, limits inside
WITH r (who, total) AS (SELECT o.customer, sum(l.price) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY o.customer) SELECT c.name, total FROM customers c, r WHERE c.id = who AND total = (SELECT max(total) FROM r) ORDER BY c.id
WITH r AS (SELECT kind, count(*) AS n FROM lines GROUP BY kind) SELECT a.kind, b.n FROM r a JOIN r b ON a.n = b.n ORDER BY 1, 2
SELECT c.name, b.total FROM customers c, orders o, big b WHERE c.id = o.customer AND b.order_id = o.id ORDER BY 2 DESC, 1
SELECT kind, count(*) FROM lines GROUP BY kind UNION ALL SELECT note, count(*) FROM orders GROUP BY note ORDER BY 1, 2
SELECT kind, n FROM (SELECT kind, count(*) AS n, rank() OVER (ORDER BY count(*) DESC) AS r FROM lines GROUP BY kind) t WHERE r <= 2 ORDER BY kind
SELECT t.id, l.n FROM (SELECT id FROM orders ORDER BY day DESC NULLS LAST, id LIMIT 5) t JOIN lines l ON l.order_id = t.id ORDER BY 1, 2
SELECT count(*) FROM (SELECT DISTINCT customer FROM orders) t
SELECT count(*) FROM (SELECT DISTINCT id FROM orders) t, lines l WHERE l.order_id = t.id
SELECT t.customer, l.kind FROM (SELECT id, customer FROM orders WHERE day IS NOT NULL) t, lines l WHERE l.order_id = t.id AND t.customer = 21 ORDER BY 1, 2
SELECT kind FROM (SELECT kind, sum(qty) AS s FROM lines GROUP BY kind) t WHERE s > 10 ORDER BY kind
SELECT l.kind, string_agg(o.note, ',' ORDER BY o.id, l.n) FROM orders o, lines l WHERE o.id = l.order_id AND o.customer < 9 GROUP BY l.kind ORDER BY l.kind
SELECT l.kind, count(*) FILTER (WHERE qty > 3) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY l.kind ORDER BY l.kind
SELECT l.kind, count(*) FROM orders o, lines l WHERE o.id = l.order_id GROUP BY ROLLUP (l.kind) ORDER BY l.kind NULLS LAST, 2
SELECT o.id, o.note, count(*) FROM orders o JOIN lines l ON o.id = l.order_id GROUP BY o.id ORDER BY o.id LIMIT 4
SELECT now() = now(), count(*) FROM orders o, lines l WHERE o.id = l.order_id AND o.day < now()
SELECT count(*) FROM orders o RIGHT JOIN lines l ON o.id = l.order_id AND o.customer > 30 WHERE l.qty > 2
SELECT count(*) FROM orders o FULL JOIN lines l ON o.id = l.order_id AND o.customer > 30
SELECT count(*) FROM orders o JOIN lines l ON o.id = l.order_id JOIN regions r ON r.id = l.n
SELECT count(*) FROM customers c JOIN orders o ON o.customer = c.id, lines l WHERE l.order_id = o.id AND c.code = 'c1' OR l.kind = 'k1' AND c.id = 3
SELECT 1 / (count(*) - count(*)) FROM orders o, lines l WHERE o.id = l.order_id
