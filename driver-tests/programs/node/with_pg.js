// node-postgres with its pool, cursor and stream. Where to connect is in PGHOST and so on. What it prints must be the same on
// PostgreSQL and on pgherd.
const { Pool, Client, types } = require("pg");
const Cursor = require("pg-cursor");
const QueryStream = require("pg-query-stream");

const say = (...words) => console.log(...words.map((w) => (typeof w === "string" ? w : JSON.stringify(w))));

async function refused(client, ...query) {
  try {
    await client.query(...query);
    say("not refused");
  } catch (e) {
    say(e.name, e.code, e.constraint, e.table, e.column, e.position, e.message, e.detail);
  }
}

async function fill(pool) {
  await pool.query(`CREATE TABLE js_item (id int PRIMARY KEY, name text NOT NULL, price numeric(8,2) CHECK (price >= 0), tags text[],
    details jsonb, made timestamptz, raw bytea, ok bool DEFAULT true)`);
  await pool.query("CREATE TABLE js_sale (item int, day date, pieces int, PRIMARY KEY (item, day))");
  const text = "INSERT INTO js_item (id, name, price, tags, details, made, raw) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id, ok";
  for (let n = 1; n <= 12; n++) {
    const values = [n, `item ${n}`, (n * 1.25).toFixed(2), ["a", `t${n % 3}`], { n, deep: [n] }, new Date(Date.UTC(2024, 0, n)), Buffer.from([n, 255])];
    const result = await pool.query({ name: "insert-item", text, values });
    if (n % 5 === 0) say(result.command, result.rowCount, result.rows, result.fields.map((f) => [f.name, f.dataTypeID]));
  }
  const many = Array.from({ length: 30 }, (_, n) => pool.query("INSERT INTO js_sale VALUES ($1, $2, $3)", [n % 10, `2024-03-${String((n % 28) + 1).padStart(2, "0")}`, n]));
  say((await Promise.all(many)).reduce((sum, r) => sum + r.rowCount, 0));
}

async function read(pool) {
  say((await pool.query("SELECT * FROM js_item WHERE id = $1", [4])).rows);
  say((await pool.query("SELECT id, price FROM js_item WHERE id = ANY($1) ORDER BY id DESC", [[2, 5, 11, 99]])).rows);
  say((await pool.query({ text: "SELECT count(*), sum(price), array_agg(id ORDER BY id) FROM js_item", rowMode: "array" })).rows);
  say((await pool.query("SELECT i.name, sum(s.pieces) FROM js_item i JOIN js_sale s ON s.item = i.id GROUP BY i.name ORDER BY 2 DESC, 1 LIMIT 4")).rows);
  say((await pool.query("SELECT id FROM js_item WHERE details @> $1", [{ n: 7 }])).rows, (await pool.query("SELECT 1 WHERE false")).rowCount);
  const several = await pool.query("SELECT 1 AS a; SELECT count(*) AS b FROM js_item; UPDATE js_item SET ok = false WHERE id > 9");
  say(several.map((r) => [r.command, r.rowCount, r.rows]));
  const settings = await pool.query("SELECT $1::text || name AS x FROM js_item WHERE name LIKE $2 ORDER BY 1", ["<", "item 1%"]);
  say(settings.rows.map((r) => r.x));
}

async function cursors(pool) {
  const client = await pool.connect();
  const cursor = client.query(new Cursor("SELECT id FROM js_item WHERE id > $1 ORDER BY id", [2]));
  const batches = [];
  for (let rows = await cursor.read(4); rows.length; rows = await cursor.read(4)) batches.push(rows.map((r) => r.id));
  say(batches);
  await cursor.close();
  const early = client.query(new Cursor("SELECT * FROM js_sale"));
  say((await early.read(1)).length);
  await early.close();
  const stream = client.query(new QueryStream("SELECT item, pieces FROM js_sale ORDER BY pieces", [], { batchSize: 7 }));
  let sum = 0;
  for await (const row of stream) sum += row.pieces;
  say(sum);
  client.release();
}

async function transactions(pool) {
  const client = await pool.connect();
  await client.query("BEGIN");
  await client.query("UPDATE js_item SET price = price + 1");
  await client.query("SAVEPOINT here");
  await refused(client, "INSERT INTO js_item (id, name) VALUES (4, 'again')");
  await refused(client, "SELECT 1");
  await client.query("ROLLBACK TO here");
  say((await client.query("SELECT sum(price) FROM js_item")).rows);
  await client.query("ROLLBACK");
  say((await client.query("SELECT sum(price) FROM js_item")).rows);
  await refused(client, "INSERT INTO js_item (id, name) VALUES ($1, $2)", [50, null]);
  await refused(client, "INSERT INTO js_item (id, name, price) VALUES ($1, $2, $3)", [50, "x", -1]);
  await refused(client, "SELECT * FROM js_nothing");
  await refused(client, "SELECT nam FROM js_item WHERE id = $1", [1]);
  await refused(client, "SELECT $1::int", ["no number"]);
  say((await client.query("INSERT INTO js_item (id, name) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING name", [4, "upserted"])).rows);
  say((await client.query("DELETE FROM js_item WHERE id > $1 RETURNING id", [9])).rows.map((r) => r.id).sort((a, b) => a - b));
  client.release();
}

async function notifications(pool) {
  const client = await pool.connect();
  const notices = [];
  client.on("notice", (n) => notices.push([n.severity, n.code, n.message]));
  await client.query("DROP TABLE IF EXISTS js_nowhere");
  say(notices);
  const told = new Promise((resolve) => client.on("notification", (n) => resolve([n.channel, n.payload])));
  await client.query("LISTEN js_news");
  await pool.query("SELECT pg_notify('js_news', 'hello')");
  say(await told);
  await client.query("SET application_name = 'js'");
  say((await client.query("SHOW application_name")).rows, (await client.query("SELECT current_setting('server_version_num')::int / 10000 AS v")).rows);
  client.release(true);
  const other = new Client({ statement_timeout: 200 });
  await other.connect();
  await refused(other, "SELECT pg_sleep(5)");
  await other.end();
}

async function main() {
  types.setTypeParser(1082, (text) => text);
  const pool = new Pool({ max: 5 });
  await fill(pool);
  await read(pool);
  await cursors(pool);
  await transactions(pool);
  await notifications(pool);
  await pool.query("DROP TABLE js_item, js_sale");
  await pool.end();
}

main().catch((e) => { console.error(e); process.exit(1); });
