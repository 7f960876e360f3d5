//! The commands as a person runs them: `up`, `gateway`, `status`, `init`.

mod docker;
mod readme;
mod running;

use nix::sys::signal::Signal;
use pgherd_local_cluster::PlainServer;
use running::{Place, Running, output, pgherd, refusal, up, up_at};

async fn value(client: &tokio_postgres::Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.expect(sql).get(0)
}

/// The life of a cluster: made, found again, taken over after a kill, stopped by each signal.
async fn life(shards: usize, ordinary_user: bool) {
    let place = Place::new();
    let pgherd = Running::start(up(&place, shards, ordinary_user));
    assert_eq!(
        pgherd.ready,
        format!("psql -h 127.0.0.1 -p {} -U postgres", pgherd.port())
    );
    assert_eq!(place.servers().len(), shards);
    let client = pgherd.connect().await;
    client
        .batch_execute("CREATE TABLE kept AS SELECT 42 AS a")
        .await
        .expect("create");
    drop(client);
    assert!(pgherd.end(Signal::SIGTERM), "it ends well");
    assert_eq!(place.servers(), Vec::<u32>::new(), "SIGTERM leaves nothing");

    let again = Running::start(up(&place, shards, ordinary_user));
    assert_eq!(value(&again.connect().await, "SELECT a::text FROM kept").await, "42");
    let before = place.servers();
    again.end(Signal::SIGKILL);

    let taken_over = Running::start(up(&place, shards, ordinary_user));
    assert_eq!(
        value(&taken_over.connect().await, "SELECT a::text FROM kept").await,
        "42"
    );
    assert_eq!(place.servers(), before, "the shards went on running");
    assert!(taken_over.end(Signal::SIGINT));
    assert_eq!(
        place.servers(),
        Vec::<u32>::new(),
        "Ctrl-C leaves nothing, what was taken over included"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shard() {
    life(1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_shards_of_an_ordinary_user() {
    life(5, true).await;
}

fn get(address: std::net::SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: pgherd\r\nConnection: close\r\n\r\n"
    )
    .expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_are_served() {
    let place = Place::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("bind");
    let mut command = up(&place, 1, false);
    command.args(["--metrics-listen", &free.to_string()]);
    let pgherd = Running::start(command);
    let client = pgherd.connect().await;
    assert_eq!(value(&client, "SELECT 'served'").await, "served");
    let health = get(free, "/health");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let metrics = get(free, "/metrics");
    assert!(metrics.contains("pgherd_clients 1"), "{metrics}");
    drop(client);
    assert!(pgherd.end(Signal::SIGTERM));
}

#[tokio::test(flavor = "multi_thread")]
async fn sharded_tables_survive_a_stop_and_a_kill() {
    let place = Place::new();
    let first = Running::start(up(&place, 3, false));
    let client = first.connect().await;
    let table = "CREATE TABLE t (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
        CREATE TABLE low PARTITION OF t FOR VALUES FROM (MINVALUE) TO (10);
        CREATE TABLE mid PARTITION OF t FOR VALUES FROM (10) TO (20);
        CREATE TABLE high PARTITION OF t FOR VALUES FROM (20) TO (MAXVALUE);
        INSERT INTO t VALUES (1, 'a'), (11, 'b'), (21, 'c')";
    for statement in table.split(';') {
        client.batch_execute(statement).await.expect(statement);
    }
    // The catalog is another version's when it starts again, and is made anew beside sharded tables.
    let earlier = "UPDATE pgherd.installation SET digest = 'an earlier one'";
    client.batch_execute(earlier).await.expect("of the service role");
    drop(client);
    assert!(first.end(Signal::SIGTERM));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let pgherd = Running::start(up(&place, 3, false));
        let client = pgherd.connect().await;
        assert_eq!(
            value(&client, "SELECT string_agg(v, '' ORDER BY k) FROM t").await,
            "abc"
        );
        let shards = "SELECT string_agg(shard::text, ',' ORDER BY shard) FROM pgherd.ranges";
        assert_eq!(value(&client, shards).await, "shard1,shard2,shard3");
        let made = "SELECT digest <> 'an earlier one' FROM pgherd.installation";
        assert_eq!(value(&client, &format!("SELECT ({made})::text")).await, "true");
        drop(client);
        pgherd.end(signal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_the_first_start_is_kept() {
    let place = Place::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("bind");
    let first = Running::start(up_at(&place, 1, false, &free.to_string()));
    assert_eq!(first.port(), free.port());
    assert!(first.end(Signal::SIGTERM));
    let mut command = pgherd();
    command.args(["up", "--shards", "1", "--data"]).arg(place.data());
    let second = Running::start(command);
    assert_eq!(second.port(), free.port());
    assert!(second.end(Signal::SIGTERM));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_refused_with_a_remedy() {
    let place = Place::new();
    let pgherd = Running::start(up(&place, 2, false));

    let text = refusal(up(&place, 2, false));
    assert!(
        text.contains("in use by another pgherd") && text.contains("--data"),
        "{text}"
    );
    let other = Place::new();
    let text = refusal(up_at(&other, 1, false, &format!("127.0.0.1:{}", pgherd.port())));
    assert!(
        text.contains("--listen") && !other.data().exists(),
        "a taken port is noticed before anything is made: {text}"
    );
    let text = refusal(up(&other, 0, false));
    assert!(text.contains("--shards"), "{text}");

    assert!(pgherd.end(Signal::SIGTERM));
    let text = refusal(up(&place, 3, false));
    assert!(text.contains("--shards 2"), "{text}");
    assert_eq!(place.servers(), Vec::<u32>::new());

    let mut status = running::pgherd();
    status.args(["status", "--data"]).arg(place.data());
    let text = refusal(status);
    assert!(text.contains("pgherd up"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_during_the_start_leaves_nothing() {
    let place = Place::new();
    let mut child = up(&place, 3, false).spawn().expect("run pgherd");
    let begun = std::time::Instant::now();
    while place.servers().is_empty() && begun.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("kill");
    child.wait().expect("wait");
    assert_eq!(place.servers(), Vec::<u32>::new());
    // What was half made is made whole by the next start.
    let pgherd = Running::start(up(&place, 3, false));
    assert_eq!(value(&pgherd.connect().await, "SELECT 'fine'").await, "fine");
    assert!(pgherd.end(Signal::SIGTERM));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shard_is_started_again() {
    let place = Place::new();
    let pgherd = Running::start(up(&place, 1, false));
    let before = place.servers();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0] as i32), Signal::SIGKILL).expect("kill");
    let begun = std::time::Instant::now();
    while place.servers() == before || place.servers().is_empty() {
        assert!(begun.elapsed().as_secs() < 30, "the shard was not started again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let text = loop {
        let mut status = running::pgherd();
        status.args(["status", "--data"]).arg(place.data());
        let status = output(status);
        let text = String::from_utf8(status.stdout).expect("text");
        if status.status.success() || begun.elapsed().as_secs() > 30 {
            break text;
        }
    };
    assert!(text.contains("PostgreSQL"), "{text}");
    assert!(pgherd.end(Signal::SIGTERM));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_gateway_runs_from_the_configuration_that_up_wrote() {
    let place = Place::new();
    let first = Running::start(up(&place, 2, false));
    first
        .connect()
        .await
        .batch_execute("CREATE TABLE seen AS SELECT 7 AS a")
        .await
        .expect("create");
    let mut command = pgherd();
    command
        .args(["gateway", "--listen", "127.0.0.1:0", "--config"])
        .arg(place.data().join("pgherd.toml"));
    let second = Running::start(command);
    assert_eq!(value(&second.connect().await, "SELECT a::text FROM seen").await, "7");

    let mut status = pgherd();
    status.args(["status", "--data"]).arg(place.data());
    let status = output(status);
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success(), "{status:?}");
    for word in ["shard1", "shard2", "ranges", "gateways", "PostgreSQL"] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    assert!(second.end(Signal::SIGTERM));
    assert_eq!(place.servers().len(), 2, "a gateway stops no shards");
    assert_eq!(value(&first.connect().await, "SELECT a::text FROM seen").await, "7");
    assert!(first.end(Signal::SIGTERM));
}

/// A configuration for servers that somebody else runs.
fn configuration(servers: &[&PlainServer]) -> tempfile::NamedTempFile {
    let mut text = format!("[cluster]\nname = 'mine'\nsecret = '{}'\n", "s".repeat(64));
    for (server, id) in servers.iter().zip(1..) {
        let host = server.socket_dir().display();
        text.push_str(&format!(
            "[[shards]]\nid = {id}\nname = 'db{id}'\nhost = '{host}'\nport = {}\n",
            server.port()
        ));
    }
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), text).expect("write");
    file
}

fn init(config: &tempfile::NamedTempFile) -> std::process::Command {
    let mut command = pgherd();
    command.args(["init", "--config"]).arg(config.path());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn init_says_what_to_change() {
    let plain = PlainServer::ephemeral(false).await.expect("start");
    let config = configuration(&[&plain]);
    let said = output(init(&config));
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(
        !said.status.success() && text.contains("CREATE ROLE pgherd SUPERUSER LOGIN"),
        "{text}"
    );

    let client = plain.connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute("CREATE ROLE pgherd LOGIN")
        .await
        .expect("create role");
    let mut command = init(&config);
    command.args(["--role", "nobody_knows"]);
    let said = output(command);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(!said.status.success());
    for change in [
        "max_prepared_transactions = 200",
        "wal_level = 'logical'",
        "ALTER ROLE pgherd SUPERUSER",
        "CREATE ROLE nobody_knows",
    ] {
        assert!(text.contains(change), "{change} is missing:\n{text}");
    }
    assert!(
        !text.contains("make the database"),
        "its encoding and collation are right:\n{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn init_prepares_servers_that_somebody_else_runs() {
    let settings = [
        ("max_prepared_transactions", "50"),
        ("wal_level", "logical"),
        ("max_connections", "200"),
    ];
    let settings: Vec<_> = settings
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into();
    let one = PlainServer::ephemeral_with(false, false, settings.clone())
        .await
        .expect("start");
    let two = PlainServer::ephemeral_with(false, false, settings)
        .await
        .expect("start");
    for server in [&one, &two] {
        let client = server.connect("postgres", "postgres").await.expect("connect");
        client
            .batch_execute("CREATE ROLE pgherd SUPERUSER LOGIN")
            .await
            .expect("create role");
    }
    let twice = output(init(&configuration(&[&one, &one, &two])));
    assert!(!twice.status.success(), "one address twice");

    let config = configuration(&[&one, &two]);
    for attempt in ["first", "second"] {
        let said = output(init(&config));
        assert!(said.status.success(), "{attempt}: {said:?}");
    }
    let mut command = pgherd();
    command
        .args(["gateway", "--listen", "127.0.0.1:0", "--config"])
        .arg(config.path());
    let gateway = Running::start(command);
    let client = gateway.connect().await;
    client
        .batch_execute("CREATE TABLE t AS SELECT 5 AS a")
        .await
        .expect("create");
    assert_eq!(value(&client, "SELECT a::text FROM t").await, "5");
    drop(client);
    assert!(gateway.end(Signal::SIGTERM));
}
