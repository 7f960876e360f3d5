"""A project in Django: migrations forth and back, the ORM, transactions, the administration's pages, and inspectdb.

Where to connect is in PGHOST and so on. What it prints must be the same on PostgreSQL and on pgherd.
"""

import decimal
import io
import os
import pathlib
import sys
import tempfile
import types

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    SECRET_KEY="not secret",
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="urls_of_shop",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages", "django.contrib.postgres", "shop"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {"context_processors": ["django.template.context_processors.request", "django.contrib.auth.context_processors.auth", "django.contrib.messages.context_processors.messages"]}}],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"], "USER": "postgres"}},
)

FOLDER = tempfile.TemporaryDirectory()
PACKAGE = pathlib.Path(FOLDER.name) / "shop"
(PACKAGE / "migrations").mkdir(parents=True)
(PACKAGE / "migrations" / "__init__.py").write_text("")
(PACKAGE / "__init__.py").write_text("")
(PACKAGE / "models.py").write_text('''
from django.contrib.postgres.fields import ArrayField
from django.db import models

class Customer(models.Model):
    name = models.CharField(max_length=60, db_index=True)
    email = models.EmailField(unique=True, null=True)
    born = models.DateField(null=True)
    class Meta:
        ordering = ["id"]
    def __str__(self):
        return self.name

class Product(models.Model):
    sku = models.CharField(max_length=20, primary_key=True)
    price = models.DecimalField(max_digits=9, decimal_places=2)
    tags = ArrayField(models.CharField(max_length=10), default=list)
    details = models.JSONField(default=dict)

class Purchase(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="purchases")
    products = models.ManyToManyField(Product, through="Line")
    at = models.DateTimeField()
    paid = models.BooleanField(default=False)
    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(at__gte="2000-01-01 00:00+00"), name="not_too_old")]

class Line(models.Model):
    purchase = models.ForeignKey(Purchase, on_delete=models.CASCADE)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    pieces = models.PositiveIntegerField(default=1)
''')
(PACKAGE / "admin.py").write_text('''
from django.contrib import admin
from .models import Customer, Purchase

class CustomerAdmin(admin.ModelAdmin):
    list_display = ["name", "email"]
    search_fields = ["name"]
    list_filter = ["born"]
    date_hierarchy = "born"

admin.site.register(Customer, CustomerAdmin)
admin.site.register(Purchase, list_select_related=["customer"], list_display=["id", "customer", "paid"], list_editable=["paid"])
''')
sys.path.insert(0, FOLDER.name)
urls = types.ModuleType("urls_of_shop")
sys.modules["urls_of_shop"] = urls
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import Permission, User  # noqa: E402
from django.contrib.postgres.aggregates import ArrayAgg  # noqa: E402
from django.db import DatabaseError, IntegrityError, connection, models, transaction  # noqa: E402
from django.db.models import Avg, Count, Exists, F, OuterRef, Prefetch, Q, Subquery, Sum, Window  # noqa: E402
from django.db.models.functions import Lower, Rank, TruncMonth  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils.timezone import datetime, timedelta  # noqa: E402

urls.urlpatterns = [path("admin/", admin.site.urls)]
from shop.models import Customer, Line, Product, Purchase  # noqa: E402

START = datetime.fromisoformat("2024-01-05T10:00:00+00:00")


def command(*words, **options):
    said = io.StringIO()
    call_command(*words, stdout=said, stderr=said, no_color=True, **options)
    # Django names files from the folder that it was started in.
    return said.getvalue().replace(os.path.relpath(FOLDER.name), "").replace(FOLDER.name, "")


def refused(work):
    try:
        with transaction.atomic():
            work()
    except DatabaseError as error:
        cause = error.__cause__
        print(type(error).__name__, cause.sqlstate, cause.diag.constraint_name, cause.diag.message_primary)
    else:
        print("not refused")


def fill():
    made = Customer.objects.bulk_create([Customer(name=f"customer {n:02}", email=f"c{n}@example.org", born=START.date() - timedelta(days=500 * n)) for n in range(1, 13)], batch_size=5)
    print([c.pk for c in made])
    Product.objects.bulk_create([Product(sku=f"{letter}-{n}", price=decimal.Decimal(n) + decimal.Decimal("0.25"), tags=[letter, str(n % 2)], details={"n": n, "deep": {"letter": letter}}) for letter in "amz" for n in range(1, 5)])
    for n in range(1, 25):
        purchase = Purchase.objects.create(customer=made[n % 10], at=START + timedelta(days=7 * n))
        for m, product in enumerate(Product.objects.order_by("sku")[n % 9 : n % 9 + 2]):
            Line.objects.create(purchase=purchase, product=product, pieces=n % 3 + m)
    print(Customer.objects.get_or_create(email="c3@example.org", defaults={"name": "nobody"})[1], Customer.objects.get_or_create(email="new@example.org", defaults={"name": "new"}))
    print(Customer.objects.update_or_create(email="c4@example.org", defaults={"name": "Four"}))
    print(Product.objects.bulk_create([Product(sku="a-1", price=9), Product(sku="q-1", price=8)], update_conflicts=True, unique_fields=["sku"], update_fields=["price"]).__len__(), Product.objects.get(sku="a-1").price)
    print(len(Customer.objects.bulk_create([Customer(id=3, name="ignored")], ignore_conflicts=True)), Customer.objects.get(id=3).name)


def read():
    print([(p.id, p.customer.name, p.paid) for p in Purchase.objects.select_related("customer").filter(customer__name__contains="0").order_by("-id")[:4]])
    for c in Customer.objects.prefetch_related(Prefetch("purchases", Purchase.objects.order_by("-at"))).filter(id__in=[2, 6, 9]):
        print(c.name, [p.id for p in c.purchases.all()])
    print(Line.objects.aggregate(Sum("pieces"), Avg("product__price"), n=Count("purchase", distinct=True)))
    print(list(Customer.objects.annotate(n=Count("purchases"), spent=Sum(F("purchases__line__pieces") * F("purchases__line__product__price"))).filter(n__gt=2).order_by("-spent", "id").values_list("name", "n", "spent")))
    print(list(Purchase.objects.annotate(month=TruncMonth("at")).values("month").annotate(n=Count("id")).order_by("month")))
    newest = Purchase.objects.filter(customer=OuterRef("pk")).order_by("-at").values("id")[:1]
    print(list(Customer.objects.annotate(newest=Subquery(newest), any=Exists(Purchase.objects.filter(customer=OuterRef("pk"), paid=True))).values_list("id", "newest", "any")))
    print(list(Product.objects.annotate(place=Window(Rank(), partition_by=F("tags__0"), order_by="-price")).order_by("sku").values_list("sku", "place")))
    print(list(Product.objects.filter(Q(details__deep__letter="m") | Q(tags__contains=["z"]), ~Q(details__n=2)).order_by(Lower("sku")).values_list("sku", flat=True)))
    print(list(Customer.objects.filter(purchases__products__sku__startswith="z").distinct().values_list("id", flat=True)))
    print(Customer.objects.filter(id__lt=3).union(Customer.objects.filter(id__gt=11)).order_by("id").values_list("id", flat=True))
    print(list(Product.objects.values("details__deep__letter").annotate(all=ArrayAgg("sku", ordering="sku")).order_by("details__deep__letter")))
    print(Customer.objects.in_bulk([1, 8]), Customer.objects.earliest("born"), Customer.objects.exclude(purchases__paid=False).count())
    print(sum(1 for _ in Line.objects.iterator(chunk_size=7)), Customer.objects.dates("born", "year")[:3])
    print(Customer.objects.raw("SELECT * FROM shop_customer WHERE id = %s", [5])[0])


def change():
    print(Product.objects.filter(sku__startswith="a").update(price=F("price") * 2), Product.objects.get(sku="a-2").price)
    with transaction.atomic():
        for c in Customer.objects.select_for_update().filter(id__in=[2, 5, 8]):
            c.name = c.name.upper()
            c.save()
        print(list(Purchase.objects.select_for_update(of=("self",), skip_locked=True).select_related("customer").filter(id__lt=4).order_by("id").values_list("id", flat=True)))
    changed = list(Purchase.objects.filter(id__lte=9))
    for p in changed:
        p.paid = p.id % 2 == 0
    print(Purchase.objects.bulk_update(changed, ["paid"]), Purchase.objects.filter(paid=True).count())
    try:
        with transaction.atomic():
            Customer.objects.all().update(name="lost")
            with transaction.atomic():
                Customer.objects.create(name="inner")
                transaction.set_rollback(True)
            print(Customer.objects.filter(name="inner").count())
            raise ValueError
    except ValueError:
        print(Customer.objects.filter(name="lost").count())
    said = []
    with transaction.atomic():
        transaction.on_commit(lambda: said.append("committed"))
    print(said)
    refused(lambda: Customer.objects.create(id=2, name="again"))
    refused(lambda: Customer.objects.create(name="again", email="c2@example.org"))
    refused(lambda: Purchase.objects.create(customer_id=1, at=START - timedelta(days=20000)))
    refused(lambda: Product.objects.create(sku="x", price=None))
    refused(lambda: connection.cursor().execute("SELECT * FROM nothing"))
    try:
        Product.objects.get(sku="m-1").delete()
    except models.ProtectedError as error:
        print("protected", len(error.protected_objects))
    print(Customer.objects.get(id=7).delete(), Purchase.objects.filter(id__gt=20).delete())
    print(Customer.objects.count(), Purchase.objects.count(), Line.objects.count())
    person = Customer.objects.select_for_update(nowait=True)
    with transaction.atomic():
        print(person.get(id=1).name)
    with connection.cursor() as cursor:
        cursor.callproc("pg_sleep", [0])
        cursor.execute("SELECT id FROM shop_customer ORDER BY id LIMIT 2")
        print(cursor.fetchall(), cursor.description[0].name)


def administration():
    User.objects.create_superuser("boss", "boss@example.org", "secret")
    print(Permission.objects.count())
    browser = Client()
    print(browser.login(username="boss", password="wrong"), browser.login(username="boss", password="secret"))
    for page in ["", "shop/customer/", "shop/customer/?q=customer+0", "shop/customer/?born__year=2020", "shop/purchase/", "shop/customer/5/change/", "auth/user/"]:
        print(page, browser.get(f"/admin/{page}").status_code)
    answer = browser.post("/admin/shop/customer/add/", {"name": "by hand", "email": "hand@example.org", "born": "2001-02-03"})
    print(answer.status_code, Customer.objects.get(name="by hand").email)
    answer = browser.post("/admin/shop/customer/", {"action": "delete_selected", "_selected_action": ["9", "10"], "post": "yes"})
    print(answer.status_code, Customer.objects.filter(id__in=[9, 10]).count())


def main():
    print(command("makemigrations", "shop"))
    print(command("migrate", verbosity=1))
    print(command("makemigrations", "--check", "--dry-run"))
    fill()
    read()
    change()
    administration()
    print(command("inspectdb", "shop_customer", "shop_product", "shop_purchase", "shop_line"))
    print(command("showmigrations"))
    print(command("sqlsequencereset", "shop"))
    dump = command("dumpdata", "shop", "--natural-primary", "--indent=1")
    print(dump.count("model"))
    print(command("migrate", "shop", "zero", verbosity=1))
    print(sorted(connection.introspection.table_names()))
    print(command("flush", "--no-input", verbosity=0))
    for app in ["admin", "sessions", "auth", "contenttypes"]:
        command("migrate", app, "zero")
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE django_migrations")
    print(sorted(connection.introspection.table_names()))


main()
