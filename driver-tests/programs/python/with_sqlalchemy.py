"""SQLAlchemy's ORM and Core, with Alembic's migrations, over psycopg 3 and over asyncpg.

Where to connect is in PGHOST and so on. What it prints must be the same on PostgreSQL and on pgherd.
"""

import asyncio
import datetime
import decimal
import enum
import os
import pathlib
import tempfile
import uuid

import alembic.command
import alembic.config
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    ARRAY, CheckConstraint, Date, Enum, ForeignKey, Index, MetaData, Numeric, String, Text, Uuid, create_engine, delete, func, inspect, insert, select,
    text, update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, joinedload, mapped_column, relationship, selectinload

ADDRESS = f"postgres@{os.environ['PGHOST']}:{os.environ['PGPORT']}/{os.environ['PGDATABASE']}"

REVISIONS = {
    "a1_first": '''
revision, down_revision = "a1", None
import sqlalchemy as sa
from alembic import op

def upgrade():
    op.create_table("warehouse", sa.Column("id", sa.Integer, primary_key=True), sa.Column("town", sa.String(30), nullable=False))
    op.create_table("stock", sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("warehouse_id", sa.Integer, nullable=False),
                    sa.Column("item", sa.Text), sa.Column("pieces", sa.Integer, server_default="0"))
    op.create_index("stock_item", "stock", ["item"])
    op.bulk_insert(sa.table("warehouse", sa.column("id"), sa.column("town")), [{"id": n, "town": f"town {n}"} for n in range(1, 11)])

def downgrade():
    op.drop_index("stock_item", table_name="stock")
    op.drop_table("stock")
    op.drop_table("warehouse")
''',
    "b2_second": '''
revision, down_revision = "b2", "a1"
import sqlalchemy as sa
from alembic import op

def upgrade():
    op.add_column("warehouse", sa.Column("opened", sa.Date, server_default="2020-01-01"))
    op.alter_column("warehouse", "town", type_=sa.String(60), new_column_name="place")
    op.create_check_constraint("some_pieces", "stock", "pieces >= 0")
    op.execute("UPDATE warehouse SET place = upper(place) WHERE id > 5")
    op.alter_column("stock", "item", nullable=False)

def downgrade():
    op.alter_column("stock", "item", nullable=True)
    op.drop_constraint("some_pieces", "stock")
    op.alter_column("warehouse", "place", type_=sa.String(30), new_column_name="town")
    op.drop_column("warehouse", "opened")
''',
}
ENVIRONMENT = '''
from alembic import context
from sqlalchemy import create_engine
engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
'''


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"})


class Colour(enum.Enum):
    red = "red"
    green = "green"


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), index=True)
    born: Mapped[datetime.date | None] = mapped_column(Date)
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    title: Mapped[str] = mapped_column(Text)
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(8, 2), server_default="1.50")
    colour: Mapped[Colour | None] = mapped_column(Enum(Colour, name="colour"))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String), server_default="{}")
    details: Mapped[dict | None] = mapped_column(postgresql.JSONB)
    author: Mapped[Author] = relationship(back_populates="books")
    __table_args__ = (CheckConstraint("price >= 0", name="not_negative"), Index("book_title", "title", postgresql_where=text("price > 1")))


class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, server_default=text("gen_random_uuid()"))
    day: Mapped[datetime.date]
    count: Mapped[int] = mapped_column(default=0)


def fill(session):
    for n in range(1, 13):
        books = [Book(title=f"book {n}.{m}", price=decimal.Decimal(n * m) / 4, colour=[Colour.red, Colour.green, None][m % 3], details={"m": m}, tags=["t", str(m)]) for m in range(n % 4)]
        session.add(Author(name=f"author {n:02}", born=datetime.date(1900 + n, 1, n), books=books))
    session.commit()
    print("authors", session.scalar(select(func.count()).select_from(Author)), "books", session.scalar(select(func.count(Book.id))))
    rows = session.execute(insert(Visit).returning(Visit.count), [{"day": datetime.date(2024, 1, n), "count": n} for n in range(1, 9)])
    print("visits", sorted(rows.scalars()))
    session.commit()


def read(session):
    for author in session.scalars(select(Author).options(selectinload(Author.books)).where(Author.id.in_([2, 5, 11])).order_by(Author.id)):
        print(author.id, author.name, author.born, [(b.title, b.price, b.colour, b.tags, b.details) for b in author.books])
    for book in session.scalars(select(Book).options(joinedload(Book.author)).order_by(Book.id.desc()).limit(3)):
        print(book.id, book.title, book.author.name)
    totals = select(Author.name, func.count(Book.id), func.sum(Book.price), func.max(Book.title)).join(Author.books, isouter=True).group_by(Author.id, Author.name)
    for row in session.execute(totals.having(func.count(Book.id) != 1).order_by(Author.name)):
        print(*row)
    dear = select(Book.author_id, func.avg(Book.price).label("mean")).group_by(Book.author_id).cte("dear")
    print(session.execute(select(Author.name, dear.c.mean).join(dear, dear.c.author_id == Author.id).where(dear.c.mean > 3).order_by(Author.name)).all())
    other = aliased(Book)
    print(session.execute(select(func.count()).select_from(Book).join(other, (other.author_id == Book.author_id) & (other.id > Book.id))).scalar())
    rank = func.row_number().over(partition_by=Book.colour, order_by=(Book.price.desc(), Book.id))
    print(session.execute(select(Book.title, Book.colour, rank).order_by(Book.colour.nulls_last(), rank).limit(8)).all())
    print(session.scalars(select(Author.name).where(~Author.books.any(Book.price > 2)).order_by(Author.name)).all())
    print(session.scalars(select(Book.title).where(Book.details["m"].astext == "2", Book.tags.any("2")).order_by(Book.title)).all())
    print(session.get(Author, 7).name, session.get(Author, 700))
    part = session.execute(select(Author.id).order_by(Author.id).execution_options(yield_per=5)).scalars()
    print([list(batch) for batch in part.partitions()])


def change(session, engine):
    author = session.get(Author, 3, with_for_update=True)
    author.name, author.books[0].price = "changed", decimal.Decimal("99.90")
    session.commit()
    print(session.execute(update(Book).where(Book.price < 1).values(price=Book.price + 1).returning(Book.id)).scalars().all().__len__())
    print(session.execute(delete(Book).where(Book.author_id == 11)).rowcount)
    session.commit()
    with session.begin_nested() as savepoint:
        session.add(Book(author_id=4, title="lost"))
        session.flush()
        savepoint.rollback()
    print(session.scalar(select(func.count()).where(Book.title == "lost")))
    for wrong in [Book(author_id=4, title="negative", price=-1), Author(id=4, name="again"), Book(author_id=4000, title="nobody's")]:
        try:
            session.add(wrong)
            session.commit()
        except IntegrityError as error:
            session.rollback()
            print(type(error.orig).__name__, error.orig.diag.constraint_name, error.orig.diag.table_name, error.orig.diag.message_detail)
    statement = postgresql.insert(Author).values([{"id": 4, "name": "upserted"}, {"id": 40, "name": "new"}])
    statement = statement.on_conflict_do_update(index_elements=[Author.id], set_={"name": statement.excluded.name})
    print(session.execute(statement.returning(Author.id, Author.name)).all())
    session.delete(session.get(Author, 6))
    session.commit()
    print(session.scalars(select(Author.id).order_by(Author.id)).all(), session.scalar(select(func.count(Book.id))))
    for level in ["REPEATABLE READ", "SERIALIZABLE"]:
        with engine.connect().execution_options(isolation_level=level) as connection:
            print(level, connection.execute(text("SHOW transaction_isolation")).scalar(), connection.execute(select(func.count(Author.id))).scalar())
    try:
        session.execute(text("SELECT nothing FROM author"))
    except DBAPIError as error:
        session.rollback()
        print(error.orig.sqlstate, str(error.orig).splitlines()[0])
    with engine.connect() as connection, connection.begin_twophase() as transaction:
        connection.execute(update(Author).values(born=datetime.date(2000, 1, 1)))
        transaction.prepare()
        transaction.commit()
    print(session.execute(select(Author.born, func.count()).group_by(Author.born)).all())


def reflect(engine):
    found = inspect(engine)
    for name in sorted(found.get_table_names()):
        print(name, found.get_pk_constraint(name))
        for column in found.get_columns(name):
            print("   ", column["name"], repr(column["type"]), column["nullable"], column["default"], column.get("identity"))
        print("   ", sorted((i["name"], i["column_names"], i["unique"]) for i in found.get_indexes(name)))
        print("   ", sorted(k["name"] for k in found.get_foreign_keys(name)), sorted(c["name"] for c in found.get_check_constraints(name)), found.get_unique_constraints(name))
    print(found.get_enums(), sorted(found.get_sequence_names()), found.get_view_names(), found.has_table("author"), found.has_table("nobody"))
    reflected = MetaData()
    reflected.reflect(engine)
    print([t.name for t in reflected.sorted_tables])
    with engine.connect() as connection:
        print("autogenerate:", compare_metadata(MigrationContext.configure(connection), Base.metadata))


def migrate(engine):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "versions").mkdir()
        (folder / "env.py").write_text(ENVIRONMENT)
        for name, body in REVISIONS.items():
            (folder / "versions" / f"{name}.py").write_text(body)
        config = alembic.config.Config()
        config.set_main_option("script_location", str(folder))
        config.set_main_option("sqlalchemy.url", engine.url.render_as_string(hide_password=False))
        for step in ["a1", "head", "a1", "head"]:
            (alembic.command.downgrade if step == "a1" and "warehouse" in inspect(engine).get_table_names() else alembic.command.upgrade)(config, step)
            with engine.connect() as connection:
                print(step, connection.execute(text("SELECT version_num FROM alembic_version")).scalar(), [c["name"] for c in inspect(engine).get_columns("warehouse")])
                print(connection.execute(text("SELECT * FROM warehouse ORDER BY id")).all()[3:7])
        with engine.connect() as connection:
            print(len(compare_metadata(MigrationContext.configure(connection), Base.metadata)), "differences")
        alembic.command.downgrade(config, "base")
        print(inspect(engine).get_table_names())
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))


async def asynchronous():
    engine = create_async_engine(f"postgresql+asyncpg://{ADDRESS}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session:
        session.add_all([Author(id=n, name=f"a{n}", books=[Book(id=n, title=f"b{n}", price=n)]) for n in range(1, 10)])
        await session.commit()
        print((await session.scalars(select(Author.name).order_by(Author.id))).all())
        result = await session.execute(select(Author).options(selectinload(Author.books)).order_by(Author.id).limit(2))
        print([(a.name, [b.price for b in a.books]) for a in result.scalars()])
        streamed = await session.stream_scalars(select(Book.id).order_by(Book.id))
        print([n async for n in streamed])

    async def count():
        async with sessions() as session:
            return await session.scalar(select(func.sum(Book.price)))

    print(await asyncio.gather(*[count() for _ in range(5)]))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()


def main():
    engine = create_engine(f"postgresql+psycopg://{ADDRESS}")
    Base.metadata.create_all(engine)
    reflect(engine)
    with Session(engine) as session:
        fill(session)
        read(session)
        change(session, engine)
    Base.metadata.drop_all(engine)
    migrate(engine)
    engine.dispose()
    asyncio.run(asynchronous())


main()
