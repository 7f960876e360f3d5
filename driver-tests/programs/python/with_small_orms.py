"""Peewee, Pony, Tortoise and SQLModel, each with the same shop: schema, rows, queries with relations, aggregates, transactions, errors.

Where to connect is in PGHOST and so on. It prints the same on PostgreSQL and on pgherd.
"""

import asyncio
import datetime
import decimal
import os
import sys
import types

HOST, PORT, USER, DATABASE = (os.environ[name] for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE"])
TITLES = ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel", "iris", "jasmine"]
DAY = datetime.datetime(2024, 2, 29, 10, 30)


def show(what, value):
    print(f"{what}: {value}")


def with_peewee():
    import peewee
    from playhouse import postgres_ext, reflection

    server = postgres_ext.PostgresqlExtDatabase(DATABASE, host=HOST, port=int(PORT), user=USER, server_side_cursors=False)

    class Base(peewee.Model):
        class Meta:
            database = server

    class Shelf(Base):
        name = peewee.CharField(max_length=20)
        details = postgres_ext.BinaryJSONField(null=True)
        words = postgres_ext.ArrayField(peewee.TextField, null=True)

        class Meta:
            table_name = "peewee_shelf"

    class Book(Base):
        shelf = peewee.ForeignKeyField(Shelf, backref="books", on_delete="CASCADE")
        title = peewee.CharField(index=True)
        price = peewee.DecimalField(max_digits=10, decimal_places=2)
        sold = peewee.DateTimeField(default=DAY)

        class Meta:
            table_name = "peewee_book"

    server.connect()
    server.create_tables([Shelf, Book])
    show("tables", [t for t in server.get_tables() if t.startswith("peewee")])
    show("columns", [(c.name, c.data_type, c.null, c.primary_key) for c in server.get_columns("peewee_book")])
    show("indexes", sorted((i.name, i.columns, i.unique) for i in server.get_indexes("peewee_book")))
    show("foreign keys", [(k.column, k.dest_table, k.dest_column) for k in server.get_foreign_keys("peewee_book")])
    shelves = [Shelf.create(name=f"shelf {n}", details={"n": n, "even": n % 2 == 0}, words=["a", str(n)]) for n in range(9)]
    Book.insert_many([{"shelf": shelves[n % 9], "title": title, "price": decimal.Decimal(n) + decimal.Decimal("0.25")} for n, title in enumerate(TITLES)]).execute()
    joined = Book.select(Book, Shelf).join(Shelf).where(Book.price > 3).order_by(Book.title.desc())
    show("joined", [(b.title, b.shelf.name, b.price) for b in joined])
    counted = Shelf.select(Shelf.name, peewee.fn.COUNT(Book.id).alias("n"), peewee.fn.SUM(Book.price).alias("s")).join(Book, peewee.JOIN.LEFT_OUTER).group_by(Shelf.name).order_by(Shelf.name)
    show("grouped", [(s.name, s.n, s.s) for s in counted])
    show("json", [s.name for s in Shelf.select().where(Shelf.details.contains({"even": True})).order_by(Shelf.id)])
    show("array", [s.name for s in Shelf.select().where(Shelf.words.contains("3"))])
    show("window", list(Book.select(Book.title, peewee.fn.RANK().over(order_by=[Book.price.desc()])).order_by(Book.id).limit(3).tuples()))
    show("updated", Book.update(price=Book.price * 2).where(Book.title.startswith("a")).execute())
    show("returned", list(Book.update(price=1).where(Book.id.in_([3, 5])).returning(Book.title).order_by().tuples().execute()) and "rows")
    show("upsert", Shelf.insert(id=1, name="again").on_conflict(conflict_target=[Shelf.id], update={Shelf.name: "again"}).execute())
    show("prefetched", [(s.name, sorted(b.title for b in s.books)) for s in peewee.prefetch(Shelf.select().order_by(Shelf.id), Book)][:3])
    try:
        with server.atomic():
            Shelf.create(name="gone")
            with server.atomic() as inner:
                Shelf.create(name="gone too")
                inner.rollback()
            Book.create(shelf=999, title="nowhere", price=1)
    except peewee.IntegrityError as error:
        show("error", str(error).splitlines()[0])
    show("count", Shelf.select().count())
    show("deleted", shelves[0].delete_instance(recursive=True))
    show("left", Book.select().count())
    models = reflection.Introspector.from_database(server).generate_models(table_names=["peewee_shelf", "peewee_book"])
    show("introspected", {name: sorted(model._meta.fields) for name, model in sorted(models.items())})
    server.drop_tables([Book, Shelf])
    server.close()


def with_pony():
    from pony import orm

    database = orm.Database()

    class Author(database.Entity):
        _table_ = "pony_author"
        name = orm.Required(str, 40, unique=True)
        books = orm.Set("Written")
        friends = orm.Set("Author", reverse="friends", table="pony_friends")

    class Written(database.Entity):
        _table_ = "pony_written"
        title = orm.Required(str)
        price = orm.Required(decimal.Decimal, precision=8, scale=2)
        at = orm.Optional(datetime.datetime)
        author = orm.Required(Author)
        orm.composite_key(author, title)

    database.bind(provider="postgres", user=USER, host=HOST, port=int(PORT), database=DATABASE)
    database.generate_mapping(create_tables=True)
    with orm.db_session:
        authors = [Author(name=f"author {n}") for n in range(4)]
        for n, title in enumerate(TITLES):
            Written(title=title, price=n, at=DAY, author=authors[n % 4])
        authors[0].friends.add(authors[1])
    with orm.db_session:
        show("selected", orm.select(w.title for w in Written if w.price > 4).order_by(1)[:])
        show("joined", orm.select((a.name, orm.count(a.books), orm.sum(a.books.price)) for a in Author).order_by(1)[:])
        show("maximum", orm.max(w.price for w in Written if w.author.name == "author 1"))
        show("exists", orm.exists(w for w in Written if w.title == "fig"))
        show("friends", sorted(f.name for f in Author.get(name="author 1").friends))
        Author.get(name="author 2").books.select().order_by(Written.title).first().price = 100
    with orm.db_session:
        show("changed", orm.select((w.title, w.price) for w in Written if w.price == 100)[:])
        show("locked", [a.name for a in Author.select(lambda a: a.name < "author 2").for_update().order_by(Author.name)])
        show("bulk", orm.delete(w for w in Written if w.price < 2))
    with orm.db_session:
        try:
            database.insert("pony_author", name="author 1")
        except orm.IntegrityError as error:
            show("error", str(error).splitlines()[0])
            orm.rollback()
    database.drop_all_tables(with_all_data=True)
    database.disconnect()


async def with_tortoise():
    from tortoise import Tortoise, exceptions, fields
    from tortoise.expressions import F, Q
    from tortoise.functions import Count, Sum
    from tortoise.models import Model
    from tortoise.transactions import in_transaction

    class Team(Model):
        id = fields.IntField(primary_key=True)
        name = fields.CharField(max_length=30)
        details = fields.JSONField(null=True)

        class Meta:
            table = "tortoise_team"

    class Player(Model):
        id = fields.IntField(primary_key=True)
        name = fields.CharField(max_length=30, db_index=True)
        score = fields.DecimalField(max_digits=8, decimal_places=2, default=0)
        born = fields.DatetimeField(default=DAY.replace(tzinfo=datetime.timezone.utc))
        team = fields.ForeignKeyField("shop.Team", related_name="players")

        class Meta:
            table = "tortoise_player"

    module = types.ModuleType("shop")
    module.Team, module.Player = Team, Player
    Team.__module__ = Player.__module__ = "shop"
    sys.modules["shop"] = module
    await Tortoise.init(db_url=f"asyncpg://{USER}@{HOST}:{PORT}/{DATABASE}", modules={"shop": ["shop"]})
    await Tortoise.generate_schemas()
    teams = [await Team.create(name=f"team {n}", details={"n": n}) for n in range(9)]
    await Player.bulk_create([Player(name=title, score=n, team=teams[n % 9]) for n, title in enumerate(TITLES)])
    show("filtered", await Player.filter(Q(score__gt=5) | Q(name__icontains="ban")).order_by("name").values_list("name", "score"))
    show("related", [(p.name, p.team.name) for p in await Player.all().select_related("team").order_by("-score").limit(3)])
    show("annotated", await Team.annotate(n=Count("players"), s=Sum("players__score")).order_by("name").values_list("name", "n", "s"))
    show("prefetched", [(t.name, sorted(p.name for p in t.players)) for t in await Team.all().prefetch_related("players").order_by("id").limit(2)])
    show("updated", await Player.filter(score__lt=3).update(score=F("score") + 10))
    show("or made", [(t.name, made) for t, made in [await Team.get_or_create(name="team 1"), await Team.get_or_create(name="new")]])
    try:
        async with in_transaction() as connection:
            await Team.create(name="gone", using_db=connection)
            await connection.execute_query("SELECT 1 / (SELECT 0)")
    except exceptions.OperationalError as error:
        show("error", error)
    async with in_transaction():
        show("locked", [t.name for t in await Team.filter(id__lt=4).select_for_update().order_by("id")])
    show("json", [t.name for t in await Team.filter(details__contains={"n": 4})])
    show("count", [await Team.all().count(), await Player.filter(team__name="team 0").count()])
    show("deleted", await Team.filter(id__in=[2, 8]).delete())
    async with in_transaction() as connection:
        await connection.execute_script("DROP TABLE tortoise_player, tortoise_team")
    await Tortoise.close_connections()


def with_sqlmodel():
    from sqlalchemy import func
    from sqlmodel import Field, Relationship, Session, SQLModel, create_engine, select

    class Club(SQLModel, table=True):
        __tablename__ = "sqlmodel_club"
        id: int | None = Field(default=None, primary_key=True)
        name: str = Field(index=True)
        members: list["Member"] = Relationship(back_populates="club")

    class Member(SQLModel, table=True):
        __tablename__ = "sqlmodel_member"
        id: int | None = Field(default=None, primary_key=True)
        name: str
        age: int | None = None
        club_id: int | None = Field(default=None, foreign_key="sqlmodel_club.id")
        club: Club | None = Relationship(back_populates="members")

    engine = create_engine(f"postgresql+psycopg://{USER}@{HOST}:{PORT}/{DATABASE}")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        clubs = [Club(name=f"club {n}", members=[Member(name=f"{title} {n}", age=n) for title in TITLES[:3]]) for n in range(5)]
        session.add_all(clubs)
        session.commit()
        show("ids", [c.id for c in clubs])
    with Session(engine) as session:
        show("joined", [tuple(row) for row in session.exec(select(Club.name, Member.name).join(Member).where(Member.age > 2).order_by(Club.name, Member.name))])
        show("counted", [tuple(row) for row in session.exec(select(Club.name, func.count(Member.id)).join(Member, isouter=True).group_by(Club.name).order_by(Club.name))])
        member = session.exec(select(Member).where(Member.name == "cherry 3")).one()
        member.age = 50
        session.add(member)
        session.commit()
        session.refresh(member)
        show("refreshed", (member.name, member.age, member.club.name))
        session.delete(member)
        session.commit()
        show("left", session.exec(select(func.count()).select_from(Member)).one())
    SQLModel.metadata.drop_all(engine)
    engine.dispose()


def main():
    for part in [with_peewee, with_pony, with_sqlmodel, with_tortoise]:
        print(f"-- {part.__name__}")
        result = part()
        if result is not None:
            asyncio.run(result)


main()
