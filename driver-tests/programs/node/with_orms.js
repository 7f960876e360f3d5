// Sequelize, TypeORM, Knex, Drizzle, Kysely, pg-promise and postgres.js, each with the same shop. Where to connect is in PGHOST and so on.
// What it prints must be the same on PostgreSQL and on pgherd.
require("reflect-metadata");

const { PGHOST: host, PGPORT, PGUSER: user, PGDATABASE: database } = process.env;
const port = Number(PGPORT);
const titles = ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel", "iris", "jasmine"];
const say = (...words) => console.log(...words.map((w) => (typeof w === "string" ? w : JSON.stringify(w))));

async function refused(what, run) {
  try {
    await run();
    say(what, "not refused");
  } catch (e) {
    const own = e.original || e.driverError || e.cause || e;
    say(what, e.name, own.code, own.constraint || own.constraint_name, own.table || own.table_name, own.message);
  }
}

async function withSequelize() {
  const { Sequelize, DataTypes, Op } = require("sequelize");
  const s = new Sequelize(database, user, "", { host, port, dialect: "postgres", logging: false });
  const Shelf = s.define("shelf", { name: { type: DataTypes.STRING(20), allowNull: false }, kind: DataTypes.ENUM("low", "high"), details: DataTypes.JSONB }, { tableName: "sequelize_shelf", timestamps: false });
  const Book = s.define("book", { title: { type: DataTypes.STRING, allowNull: false }, price: DataTypes.DECIMAL(8, 2), tags: DataTypes.ARRAY(DataTypes.TEXT), at: DataTypes.DATE }, { tableName: "sequelize_book", timestamps: false, indexes: [{ fields: ["title"] }] });
  Shelf.hasMany(Book, { onDelete: "CASCADE" });
  Book.belongsTo(Shelf);
  await s.sync();
  const columns = await s.getQueryInterface().describeTable("sequelize_book");
  say("columns", Object.entries(columns).map(([n, c]) => [n, c.type, c.allowNull, c.primaryKey]));
  say("indexes", (await s.getQueryInterface().showIndex("sequelize_book")).map((i) => [i.name, i.primary, i.unique, i.fields.map((f) => f.attribute)]));
  say("keys", (await s.getQueryInterface().getForeignKeyReferencesForTable("sequelize_book")).map((k) => [k.constraintName, k.columnName, k.referencedTableName, k.referencedColumnName]));
  const shelves = await Shelf.bulkCreate(Array.from({ length: 9 }, (_, n) => ({ name: `shelf ${n}`, kind: n % 2 ? "low" : "high", details: { n } })));
  await Book.bulkCreate(titles.map((title, n) => ({ title, price: n + 0.25, tags: ["t", title[0]], at: new Date(Date.UTC(2024, 1, n + 1)), shelfId: shelves[n % 9].id })));
  const joined = await Book.findAll({ where: { price: { [Op.gt]: 3 } }, include: Shelf, order: [["title", "DESC"]], limit: 3 });
  say("joined", joined.map((b) => [b.title, b.price, b.shelf.name, b.shelf.kind]));
  const counted = await Shelf.findAll({ attributes: ["name", [s.fn("COUNT", s.col("books.id")), "n"]], include: [{ model: Book, attributes: [] }], group: ["shelf.id"], order: ["name"] });
  say("grouped", counted.map((r) => [r.name, r.get("n")]));
  say("both", await Book.findAndCountAll({ where: { tags: { [Op.contains]: ["t"] } }, order: ["id"], limit: 2, raw: true, attributes: ["id", "title"] }));
  say("json", (await Shelf.findAll({ where: { "details.n": 4 } })).map((r) => r.name));
  say("updated", (await Book.update({ price: s.literal("price * 2") }, { where: { title: { [Op.like]: "a%" } }, returning: true }))[1].map((b) => b.price));
  say("upserted", (await Shelf.upsert({ id: 1, name: "again" }))[0].name, (await Shelf.findOrCreate({ where: { name: "new" } }))[1]);
  await refused("transaction", () => s.transaction(async (transaction) => {
    await Shelf.create({ name: "gone" }, { transaction });
    await Book.create({ title: "nowhere", shelfId: 999 }, { transaction });
  }));
  await s.transaction(async (transaction) => say("locked", (await Shelf.findAll({ where: { id: [1, 5, 8] }, order: ["id"], lock: true, transaction })).length));
  await Shelf.increment({ id: 0 }, { where: { id: 1 } });
  say("left", await Shelf.count(), await Book.destroy({ where: { id: [1, 9] } }), await Book.sum("price"), await Book.max("title"));
  await s.drop({});
  await s.close();
}

async function withTypeorm() {
  const { DataSource, EntitySchema } = require("typeorm");
  const Team = new EntitySchema({ name: "Team", tableName: "typeorm_team", columns: { id: { type: Number, primary: true, generated: true }, name: { type: String, unique: false }, details: { type: "jsonb", nullable: true } }, relations: { players: { type: "one-to-many", target: "Player", inverseSide: "team" } } });
  const Player = new EntitySchema({ name: "Player", tableName: "typeorm_player", columns: { id: { type: Number, primary: true, generated: true }, name: { type: "varchar", length: 40 }, score: { type: "numeric", precision: 8, scale: 2, default: 0 }, kind: { type: "enum", enum: ["front", "back"], default: "back" }, born: { type: "timestamptz", nullable: true } }, relations: { team: { type: "many-to-one", target: "Team", inverseSide: "players", joinColumn: true, onDelete: "CASCADE" } }, indices: [{ columns: ["name"] }] });
  const source = new DataSource({ type: "postgres", host, port, username: user, database, synchronize: true, entities: [Team, Player] });
  await source.initialize();
  await source.synchronize();
  say("no changes", (await source.driver.createSchemaBuilder().log()).upQueries.map((q) => q.query));
  const [teams, players] = [source.getRepository("Team"), source.getRepository("Player")];
  const saved = await teams.save(Array.from({ length: 9 }, (_, n) => ({ name: `team ${n}`, details: { n } })));
  say("ids", saved.map((t) => t.id));
  await players.insert(titles.map((name, n) => ({ name, score: n, kind: n % 2 ? "front" : "back", team: saved[n % 9] })));
  say("joined", (await players.find({ relations: { team: true }, order: { score: "DESC" }, take: 3 })).map((p) => [p.name, p.score, p.kind, p.team.name]));
  say("page", (await teams.findAndCount({ relations: { players: true }, order: { id: "ASC" }, skip: 1, take: 2 })).map((x) => x.length || x));
  say("built", await players.createQueryBuilder("p").innerJoin("p.team", "t").select("t.name", "team").addSelect("sum(p.score)", "total").groupBy("t.name").having("count(*) > 1").orderBy("t.name").getRawMany());
  await source.transaction(async (manager) => {
    const one = await manager.getRepository("Player").findOne({ where: { name: "fig" }, lock: { mode: "pessimistic_write" } });
    one.score = 50;
    await manager.save("Player", one);
  });
  say("changed", (await players.findOneBy({ name: "fig" })).score, (await teams.upsert({ id: 1, name: "again" }, ["id"])).identifiers);
  await refused("error", () => source.transaction(async (manager) => {
    await manager.insert("Team", { name: "gone" });
    await manager.query("INSERT INTO typeorm_player (name, \"teamId\") VALUES ('nowhere', 999)");
  }));
  say("left", await teams.count(), (await players.delete({ kind: "front" })).affected);
  await source.dropDatabase();
  await source.destroy();
}

async function withKnex() {
  const knex = require("knex")({ client: "pg", connection: { host, port, user, database } });
  await knex.schema.createTable("knex_item", (t) => {
    t.increments();
    t.string("name", 40).notNullable().index();
    t.decimal("price", 8, 2);
    t.jsonb("details");
    t.timestamp("made", { useTz: true }).defaultTo("2024-02-29");
  });
  await knex.schema.alterTable("knex_item", (t) => t.integer("stock").defaultTo(3));
  say("schema", await knex.schema.hasTable("knex_item"), await knex.schema.hasColumn("knex_item", "stock"), Object.entries(await knex("knex_item").columnInfo()).map(([n, c]) => [n, c.type, c.nullable, c.maxLength]));
  say("returned", (await knex("knex_item").insert(titles.map((name, n) => ({ name, price: n, details: { n } })), ["id", "name"])).length);
  say("selected", await knex("knex_item").where("price", ">", 4).andWhere("name", "like", "%a%").orderBy("name").select("name", "price"));
  say("grouped", await knex("knex_item").select(knex.raw("left(name, 1) < 'e' AS early")).count("*").sum("price").groupBy("early").orderBy("early"));
  say("with", await knex.with("dear", knex("knex_item").where("price", ">=", 8)).select("name").from("dear").orderBy("name"));
  say("merged", await knex("knex_item").insert({ id: 1, name: "again", price: 1 }).onConflict("id").merge(["name"]).returning("name"), await knex("knex_item").where("id", 5).increment("stock", 2));
  await refused("transaction", () => knex.transaction(async (trx) => {
    await trx("knex_item").where("id", 9).update({ stock: 0 });
    await trx("knex_item").where("id", 2).update({ name: null });
  }));
  await knex.transaction(async (trx) => say("locked", (await trx("knex_item").whereIn("id", [1, 5, 9]).forUpdate().orderBy("id")).map((r) => [r.id, r.stock])));
  say("union", await knex("knex_item").select("name").where("id", 1).union([knex("knex_item").select("name").where("id", 9)]).orderBy("name"));
  say("first", await knex("knex_item").first("name").where({ id: 3 }), await knex("knex_item").where("price", "<", 3).del());
  await knex.schema.dropTable("knex_item");
  await knex.destroy();
}

async function withDrizzle() {
  const { drizzle } = require("drizzle-orm/node-postgres");
  const { pgTable, serial, text, numeric, integer } = require("drizzle-orm/pg-core");
  const { eq, gt, desc, sql, count, sum, relations } = require("drizzle-orm");
  const { Pool } = require("pg");
  const maker = pgTable("drizzle_maker", { id: serial("id").primaryKey(), name: text("name").notNull() });
  const thing = pgTable("drizzle_thing", { id: serial("id").primaryKey(), name: text("name"), price: numeric("price"), maker: integer("maker").references(() => maker.id) });
  const makers = relations(maker, ({ many }) => ({ things: many(thing) }));
  const things = relations(thing, ({ one }) => ({ of: one(maker, { fields: [thing.maker], references: [maker.id] }) }));
  const pool = new Pool({ host, port, user, database });
  const db = drizzle(pool, { schema: { maker, thing, makers, things } });
  await db.execute(sql`CREATE TABLE drizzle_maker (id serial PRIMARY KEY, name text NOT NULL)`);
  await db.execute(sql`CREATE TABLE drizzle_thing (id serial PRIMARY KEY, name text, price numeric, maker int REFERENCES drizzle_maker)`);
  say("made", (await db.insert(maker).values(Array.from({ length: 8 }, (_, n) => ({ name: `maker ${n}` }))).returning()).length);
  await db.insert(thing).values(titles.map((name, n) => ({ name, price: String(n), maker: 1 + (n % 8) })));
  say("joined", await db.select({ thing: thing.name, maker: maker.name }).from(thing).innerJoin(maker, eq(thing.maker, maker.id)).where(gt(thing.price, "6")).orderBy(desc(thing.name)));
  say("grouped", await db.select({ maker: maker.name, n: count(thing.id), s: sum(thing.price) }).from(maker).leftJoin(thing, eq(thing.maker, maker.id)).groupBy(maker.name).orderBy(maker.name));
  say("related", await db.query.maker.findMany({ with: { things: { columns: { name: true }, orderBy: (t, { asc }) => asc(t.name) } }, orderBy: (m, { asc }) => asc(m.id), limit: 2 }));
  say("upserted", await db.insert(maker).values({ id: 2, name: "x" }).onConflictDoUpdate({ target: maker.id, set: { name: "again" } }).returning());
  await refused("transaction", () => db.transaction(async (tx) => {
    await tx.update(maker).set({ name: "gone" });
    await tx.insert(thing).values({ name: "nowhere", maker: 999 });
  }));
  say("left", await db.delete(thing).where(gt(thing.price, "7")).returning({ name: thing.name }).then((rows) => rows.length), await db.$count(maker));
  await db.execute(sql`DROP TABLE drizzle_thing, drizzle_maker`);
  await pool.end();
}

async function withKysely() {
  const { Kysely, PostgresDialect, sql } = require("kysely");
  const { Pool } = require("pg");
  const db = new Kysely({ dialect: new PostgresDialect({ pool: new Pool({ host, port, user, database }) }) });
  await db.schema.createTable("kysely_pet").addColumn("id", "serial", (c) => c.primaryKey()).addColumn("name", "varchar(30)", (c) => c.notNull()).addColumn("owner", "integer").execute();
  await db.schema.createIndex("kysely_pet_name").on("kysely_pet").column("name").execute();
  say("tables", (await db.introspection.getTables()).filter((t) => t.name === "kysely_pet").map((t) => [t.name, t.isView, t.columns.map((c) => [c.name, c.dataType, c.isNullable, c.isAutoIncrementing, c.hasDefaultValue])]));
  await db.insertInto("kysely_pet").values(titles.map((name, n) => ({ name, owner: n % 3 }))).execute();
  say("grouped", await db.selectFrom("kysely_pet").select(["owner", (e) => e.fn.countAll().as("n"), sql`string_agg(name, ',' ORDER BY name)`.as("names")]).groupBy("owner").orderBy("owner").execute());
  say("updated", await db.updateTable("kysely_pet").set({ owner: 9 }).where("name", "in", ["fig", "elder", "jasmine"]).returning("name").execute().then((rows) => rows.map((r) => r.name).sort()));
  say("deleted", (await db.deleteFrom("kysely_pet").where("owner", "=", 9).executeTakeFirst()).numDeletedRows.toString());
  await db.schema.dropTable("kysely_pet").execute();
  await db.destroy();
}

async function withPgPromise() {
  const pgp = require("pg-promise")({ noWarnings: true });
  const db = pgp({ host, port, user, database });
  await db.none("CREATE TABLE promise_item (id int PRIMARY KEY, name text)");
  const columns = new pgp.helpers.ColumnSet(["id", "name"], { table: "promise_item" });
  await db.none(pgp.helpers.insert(titles.map((name, id) => ({ id, name })), columns));
  say("many", await db.many("SELECT name FROM promise_item WHERE id IN ($1:csv) ORDER BY id DESC", [[1, 5, 8]]), await db.one("SELECT count(*)::int AS n FROM $1:name", ["promise_item"]));
  say("updated", await db.result(pgp.helpers.update([{ id: 2, name: "two" }, { id: 7, name: "seven" }], ["?id", "name"], "promise_item") + " WHERE v.id = t.id", null, (r) => r.rowCount));
  say("task", await db.tx((t) => t.batch([t.oneOrNone("SELECT name FROM promise_item WHERE id = 7"), t.any("SELECT id FROM promise_item WHERE id > $<least> ORDER BY id", { least: 6 })])));
  await refused("error", () => db.tx((t) => t.none("INSERT INTO promise_item VALUES (5, 'again')")));
  await db.none("DROP TABLE promise_item");
  await db.$pool.end();
}

async function withPostgresJs() {
  const sql = require("postgres")({ host, port, user, database, onnotice: () => {} });
  await sql`CREATE TABLE porsager_item (id int PRIMARY KEY, name text, tags text[], details jsonb)`;
  await sql`INSERT INTO porsager_item ${sql(titles.map((name, id) => ({ id, name, tags: [name, "x"], details: sql.json({ id }) })))}`;
  say("selected", await sql`SELECT id, tags, details FROM porsager_item WHERE id = ANY(${[1, 5, 9]}) ORDER BY id`);
  say("described", (await sql`SELECT id, name FROM porsager_item WHERE name = ${"fig"}`.describe()).columns.map((c) => [c.name, c.type]));
  let seen = 0;
  await sql`SELECT id FROM porsager_item ORDER BY id`.cursor(4, (rows) => { seen += rows.length; });
  say("cursor", seen, (await sql`UPDATE porsager_item SET ${sql({ name: "new" }, "name")} WHERE id > 7 RETURNING id`).length);
  await refused("error", () => sql.begin(async (tx) => {
    await tx`DELETE FROM porsager_item`;
    await tx.savepoint((inner) => inner`SELECT 1 / (SELECT 0)`);
  }));
  say("left", (await sql`SELECT count(*)::int AS n FROM porsager_item`)[0], await sql.unsafe("SELECT 1 AS a; SELECT 2 AS b"));
  await sql`DROP TABLE porsager_item`;
  await sql.end();
}

(async () => {
  for (const part of [withSequelize, withTypeorm, withKnex, withDrizzle, withKysely, withPgPromise, withPostgresJs]) {
    say(`-- ${part.name}`);
    await part();
  }
})().catch((e) => {
  console.log(e);
  process.exit(1);
});
