//! Many clients at once. They take both cores and more than ten thousand file descriptors, so they are a program of their own, which cargo
//! runs alone, and take turns. What they gave is in docs/operations.md.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

static TURN: Mutex<()> = Mutex::const_new(());

/// Lets this process, and the gateways that it starts, have as many file descriptors as the system allows them.
fn allow_descriptors(wanted: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    assert!(
        hard >= wanted,
        "{wanted} file descriptors are needed, and `ulimit -Hn` is {hard}: raise it"
    );
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("raise the limit");
    }
}

/// A client that costs this process as little as can be.
struct Light {
    stream: TcpStream,
    replies: Vec<u8>,
}

impl Light {
    async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let mut this = Self {
            stream,
            replies: Vec::with_capacity(1024),
        };
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut message = Vec::new();
        message.extend_from_slice(&(8 + parameters.len() as i32).to_be_bytes());
        message.extend_from_slice(&196_608i32.to_be_bytes());
        message.extend_from_slice(parameters);
        this.ask(&message).await;
        this
    }

    async fn query(&mut self, sql: &str) {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&(5 + sql.len() as i32).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.ask(&message).await;
        assert!(
            self.replies.contains(&b'D'),
            "no row: {:?}",
            String::from_utf8_lossy(&self.replies)
        );
    }

    /// Sends, and reads up to ReadyForQuery.
    async fn ask(&mut self, message: &[u8]) {
        self.stream.write_all(message).await.expect("write");
        self.replies.clear();
        while !self.replies.ends_with(b"Z\0\0\0\x05I") {
            let read = self.stream.read_buf(&mut self.replies).await.expect("read");
            assert!(read > 0, "closed: {}", String::from_utf8_lossy(&self.replies));
        }
    }
}

async fn crowd(gateway: &Gateway, count: usize) -> Vec<Light> {
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let some = (0..50.min(count - clients.len())).map(|_| Light::connect(gateway.port()));
        clients.extend(futures::future::join_all(some).await);
    }
    clients
}

fn resident_mib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid().expect("running"))).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_clients() {
    const CLIENTS: usize = 10_000;
    let _turn = TURN.lock().await;
    allow_descriptors(CLIENTS as u64 + 1_000);
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("shards");
    let gateway = herd
        .gateway_with_settings("idle", "max_clients = 20000")
        .await
        .expect("gateway");
    let before = resident_mib(&gateway);
    let began = Instant::now();
    let mut clients = crowd(&gateway, CLIENTS).await;
    let connected = began.elapsed();
    // Each has asked for something once, as pools of applications have.
    for client in &mut clients {
        client.query("SELECT 1").await;
    }
    let after = resident_mib(&gateway);
    println!("{CLIENTS} clients connected in {connected:.1?}; the gateway has {after} MiB, {before} MiB before");
    assert!(after < 500, "{after} MiB");
    let asked = Instant::now();
    clients[CLIENTS / 2].query("SELECT 1").await;
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_active_clients_share_forty_connections() {
    const CLIENTS: usize = 2_000;
    const SECONDS: u64 = 30;
    let _turn = TURN.lock().await;
    allow_descriptors(CLIENTS as u64 + 1_000);
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 2)
        .await
        .expect("shards");
    let gateway = herd
        .gateway_with_settings("active", "max_clients = 4000\npool_size = 40")
        .await
        .expect("gateway");
    let admin = gateway.connect().await.expect("connect");
    admin
        .batch_execute(
            "SET pgherd.initial_bounds = 'int 1000'; CREATE TABLE item (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
             INSERT INTO item SELECT i, i FROM generate_series(1, 2000) i",
        )
        .await
        .expect("set up");
    let clients = crowd(&gateway, CLIENTS).await;
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let running = clients.into_iter().enumerate().map(|(i, mut client)| {
        tokio::spawn(async move {
            let (mut count, mut longest) = (0u64, Duration::ZERO);
            while Instant::now() < end {
                let asked = Instant::now();
                client.query(&format!("SELECT v FROM item WHERE k = {}", i + 1)).await;
                longest = longest.max(asked.elapsed());
                count += 1;
            }
            (count, longest)
        })
    });
    let done = futures::future::join_all(running).await;
    let mut done: Vec<(u64, Duration)> = done.into_iter().map(|ended| ended.expect("a client")).collect();
    done.sort_unstable();
    let (fewest, most) = (done[0].0, done[CLIENTS - 1].0);
    let (median, all): (u64, u64) = (done[CLIENTS / 2].0, done.iter().map(|(count, _)| count).sum());
    let longest = done.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    println!(
        "{} statements a second; per client {fewest} at least, {median} in the middle, {most} at most; the longest took {longest:.1?}",
        all / SECONDS
    );
    let backends = admin
        .query_one(
            // PostgreSQL's function shows the home shard's processes, where its view shows sessions.
            "SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE usesysid = 'postgres'::regrole AND application_name = '' AND pid <> pg_backend_pid()",
            &[],
        )
        .await
        .expect("backends");
    assert!(
        backends.get::<_, i64>(0) <= 80,
        "two pools of the role at most: one of those that are logging in"
    );
    assert!(
        fewest * 2 >= median && most <= median * 2,
        "no client starves, and none takes more than its share"
    );
}
