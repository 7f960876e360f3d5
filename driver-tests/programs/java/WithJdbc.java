// JDBC: prepared statements of both kinds, batches, cursors, large objects, metadata, COPY, savepoints. Where to connect is in
// PGHOST and so on. What it prints must be the same on PostgreSQL and on pgherd.
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

public class WithJdbc {
    static void say(Object... words) {
        StringJoiner line = new StringJoiner(" ");
        for (Object word : words) line.add(word instanceof Object[] ? Arrays.deepToString((Object[]) word) : String.valueOf(word));
        System.out.println(line);
    }

    static void rows(ResultSet rows, String... columns) throws SQLException {
        while (rows.next()) {
            StringJoiner line = new StringJoiner(" | ");
            if (columns.length > 0) for (String column : columns) line.add(rows.getString(column));
            else for (int i = 1; i <= rows.getMetaData().getColumnCount(); i++) line.add(rows.getString(i));
            say(line);
        }
        rows.close();
    }

    interface Work { void run() throws Exception; }

    static void refused(Work work) {
        try {
            work.run();
            say("not refused");
        } catch (SQLException e) {
            SQLException last = e.getNextException() != null ? e.getNextException() : e;
            say(last.getSQLState(), last.getMessage().split("\n")[0].replaceAll("large object \\d+", "large object"));
        } catch (Exception e) {
            say(e.getClass().getName());
        }
    }

    static Connection connect(String options) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url + "?user=" + System.getenv("PGUSER") + options);
    }

    static void fill(Connection db, boolean isSimple) throws SQLException {
        try (Statement s = db.createStatement()) {
            s.executeUpdate("CREATE TABLE j_item (id int PRIMARY KEY, name varchar(30) NOT NULL, price numeric(8,2), made timestamptz, day date, tags text[], id2 uuid, raw bytea, ok bool)");
            s.executeUpdate("CREATE TABLE j_serial (id bigserial PRIMARY KEY, body text)");
        }
        try (PreparedStatement p = db.prepareStatement("INSERT INTO j_item VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")) {
            for (int n = 1; n <= 12; n++) {
                p.setInt(1, n);
                p.setString(2, "item " + n);
                p.setBigDecimal(3, new BigDecimal(n).divide(new BigDecimal(4)));
                p.setObject(4, java.time.OffsetDateTime.parse("2024-05-01T10:00:00+02:00").plusDays(n));
                p.setObject(5, java.time.LocalDate.of(2024, 2, n));
                p.setArray(6, db.createArrayOf("text", new String[] {"a", null, "n" + n}));
                p.setObject(7, new UUID(0, n));
                // The driver cannot write these into a text.
                if (isSimple) p.setNull(8, Types.BINARY);
                else p.setBytes(8, new byte[] {(byte) n, -1});
                p.setBoolean(9, n % 2 == 0);
                p.addBatch();
            }
            say(p.executeBatch().length);
        }
        try (PreparedStatement p = db.prepareStatement("INSERT INTO j_serial (body) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
            for (int n = 1; n <= 9; n++) {
                p.setString(1, "body " + n);
                p.addBatch();
            }
            p.executeBatch();
            rows(p.getGeneratedKeys(), "id");
        }
    }

    static void read(Connection db) throws SQLException {
        try (PreparedStatement p = db.prepareStatement("SELECT * FROM j_item WHERE id = ?")) {
            // From the fifth time on, the driver prepares it on the server and asks for binary.
            for (int n = 1; n <= 9; n++) {
                p.setInt(1, n);
                ResultSet r = p.executeQuery();
                r.next();
                say(r.getInt(1), r.getString(2), r.getBigDecimal(3), r.getObject(4, java.time.OffsetDateTime.class).toInstant(), r.getDate(5), (Object[]) r.getArray(6).getArray(), r.getObject(7), r.getBytes(8) == null ? null : r.getBytes(8)[0], r.getBoolean(9));
            }
        }
        try (PreparedStatement p = db.prepareStatement("SELECT count(*), sum(price), avg(price), max(name) FROM j_item WHERE price > ? AND id = ANY (?)")) {
            p.setBigDecimal(1, new BigDecimal("0.5"));
            p.setArray(2, db.createArrayOf("int4", new Integer[] {1, 2, 5, 8, 11}));
            rows(p.executeQuery());
        }
        try (PreparedStatement p = db.prepareStatement("SELECT i.id, s.body FROM j_item i JOIN j_serial s ON s.id = i.id * ? ORDER BY 1")) {
            p.setInt(1, 2);
            ResultSetMetaData m = p.getMetaData();
            say(m.getColumnName(1), m.getColumnTypeName(1), m.getColumnTypeName(2), p.getParameterMetaData().getParameterTypeName(1));
            rows(p.executeQuery());
        }
        db.setAutoCommit(false);
        try (Statement s = db.createStatement()) {
            s.setFetchSize(5);
            ResultSet r = s.executeQuery("SELECT id FROM j_item ORDER BY id DESC");
            int sum = 0;
            while (r.next()) sum = sum * 3 % 1000 + r.getInt(1);
            say("fetched", sum);
        }
        db.commit();
        db.setAutoCommit(true);
        try (Statement s = db.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
            ResultSet r = s.executeQuery("SELECT id, name, price FROM j_item ORDER BY id");
            r.absolute(4);
            r.updateString("name", "updated in place");
            r.updateRow();
            r.last();
            say(r.getRow(), r.getInt(1));
            r.deleteRow();
        }
        try (Statement s = db.createStatement()) {
            rows(s.executeQuery("SELECT id, name FROM j_item WHERE id IN (4, 12) ORDER BY id"));
            say(s.execute("SELECT 1; UPDATE j_item SET ok = NOT ok; SELECT count(*) FROM j_item"));
            rows(s.getResultSet());
            say(s.getMoreResults(), s.getUpdateCount(), s.getMoreResults());
            rows(s.getResultSet());
        }
    }

    static void change(Connection db, boolean isSimple) throws Exception {
        db.setAutoCommit(false);
        Statement s = db.createStatement();
        say(s.executeUpdate("UPDATE j_item SET price = price + 1"));
        Savepoint here = db.setSavepoint("here");
        refused(() -> s.executeUpdate("INSERT INTO j_item (id, name) VALUES (3, 'again')"));
        refused(() -> s.executeQuery("SELECT 1"));
        db.rollback(here);
        rows(s.executeQuery("SELECT sum(price) FROM j_item"));
        db.rollback();
        rows(s.executeQuery("SELECT sum(price) FROM j_item"));
        db.commit();
        db.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        rows(s.executeQuery("SELECT count(*) FROM j_serial"));
        rows(s.executeQuery("SHOW transaction_isolation"));
        db.commit();
        db.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        LargeObjectManager manager = db.unwrap(PGConnection.class).getLargeObjectAPI();
        long oid = manager.createLO(LargeObjectManager.READ | LargeObjectManager.WRITE);
        LargeObject object = manager.open(oid, LargeObjectManager.WRITE);
        object.write("many bytes".getBytes());
        object.seek(5);
        object.write("BYTES".getBytes());
        object.close();
        db.commit();
        object = manager.open(oid, LargeObjectManager.READ);
        say(object.size(), new String(object.read(100)));
        object.close();
        manager.delete(oid);
        db.commit();
        refused(() -> manager.open(oid, LargeObjectManager.READ));
        db.rollback();
        db.setAutoCommit(true);
        PreparedStatement p = db.prepareStatement("INSERT INTO j_item (id, name) VALUES (?, ?)");
        for (Object[] row : new Object[][] {{20, "new"}, {3, "again"}, {21, "never"}}) {
            p.setInt(1, (int) row[0]);
            p.setString(2, (String) row[1]);
            p.addBatch();
        }
        refused(p::executeBatch);
        rows(s.executeQuery("SELECT id FROM j_item WHERE id >= 20"));
        refused(() -> s.executeUpdate("INSERT INTO j_item (id) VALUES (30)"));
        refused(() -> s.executeQuery("SELECT nothing FROM j_item"));
        s.setQueryTimeout(1);
        refused(() -> s.executeQuery("SELECT pg_sleep(10)"));
        s.setQueryTimeout(0);
        // In this mode the driver gives the function its result as an argument.
        if (!isSimple) {
            CallableStatement call = db.prepareCall("{? = call upper(?)}");
            call.registerOutParameter(1, Types.VARCHAR);
            call.setString(2, "called");
            call.execute();
            say(call.getString(1));
        }
        PGConnection own = db.unwrap(PGConnection.class);
        say(own.getCopyAPI().copyIn("COPY j_serial (id, body) FROM STDIN WITH (FORMAT csv)", new StringReader("100,\"a,b\"\n4000,c\n")));
        StringWriter out = new StringWriter();
        say(own.getCopyAPI().copyOut("COPY (SELECT id, body FROM j_serial WHERE id > 7 ORDER BY id) TO STDOUT", out), out);
        s.execute("LISTEN j_news");
        s.execute("NOTIFY j_news, 'hello'");
        for (PGNotification n : own.getNotifications(5000)) say(n.getName(), n.getParameter());
    }

    static void metadata(Connection db) throws SQLException {
        DatabaseMetaData m = db.getMetaData();
        say(m.getDatabaseProductName(), m.getDatabaseMajorVersion(), m.getUserName(), db.getCatalog(), db.getSchema());
        rows(m.getColumns(null, "public", "j\\_%", null), "TABLE_NAME", "COLUMN_NAME", "TYPE_NAME", "COLUMN_SIZE", "IS_NULLABLE", "COLUMN_DEF", "IS_AUTOINCREMENT");
        rows(m.getPrimaryKeys(null, "public", "j_item"), "COLUMN_NAME", "PK_NAME", "KEY_SEQ");
        rows(m.getIndexInfo(null, "public", "j_item", false, true), "INDEX_NAME", "COLUMN_NAME", "NON_UNIQUE");
        rows(m.getTables(null, "public", "j\\_%", new String[] {"TABLE", "VIEW", "PARTITIONED TABLE"}), "TABLE_NAME");
        rows(m.getTables(null, null, "pg\\_class", new String[] {"SYSTEM TABLE"}), "TABLE_SCHEM", "TABLE_NAME");
        rows(m.getTypeInfo().next() ? m.getBestRowIdentifier(null, "public", "j_item", DatabaseMetaData.bestRowTransaction, false) : null, "COLUMN_NAME");
        rows(m.getFunctions(null, "pg_catalog", "lo\\_unlink"), "FUNCTION_NAME");
    }

    public static void main(String[] arguments) throws Exception {
        TimeZone.setDefault(TimeZone.getTimeZone("UTC"));
        for (String options : new String[] {"", "&preferQueryMode=simple", "&prepareThreshold=1&reWriteBatchedInserts=true&autosave=always", "&binaryTransfer=false&prepareThreshold=0"}) {
            say("options", options);
            try (Connection db = connect(options)) {
                fill(db, options.contains("simple"));
                read(db);
                change(db, options.contains("simple"));
                metadata(db);
                db.createStatement().execute("DROP TABLE j_item, j_serial");
            }
        }
    }
}
