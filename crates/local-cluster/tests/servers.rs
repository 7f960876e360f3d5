//! Local clusters: made, found again, taken over, refused; and nothing that stays behind.

use pgherd_local_cluster::{Error, Event, LocalCluster, Options, PlainServer, Server};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

async fn text(server: &Server, sql: &str) -> String {
    let client = server.connect("postgres", "postgres").await.expect("connect");
    let row = client.query_one(sql, &[]).await.expect(sql);
    row.get(0)
}

/// A folder that is removed afterwards. Open to others, since root's servers run as somebody else.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).expect("open to others");
    place
}

/// A running PostgreSQL has its data folder in its arguments.
fn serving(folder: &Path) -> Vec<u32> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.starts_with(b"/") && arguments.windows(needle.len()).any(|window| window == needle)
    })
    .collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn shards_are_set_up_for_pgherd() {
    let cluster = LocalCluster::ephemeral_with(2, vec![("work_mem".into(), "5MB".into())])
        .await
        .expect("start");
    for shard in cluster.shards() {
        for (setting, value) in [
            ("max_prepared_transactions", "200"),
            ("wal_level", "logical"),
            ("max_connections", "300"),
            ("listen_addresses", ""),
            ("work_mem", "5MB"),
            ("server_encoding", "UTF8"),
        ] {
            assert_eq!(
                text(shard, &format!("SELECT current_setting('{setting}')")).await,
                value,
                "{setting}"
            );
        }
        let collation = "SELECT datcollate::text FROM pg_database WHERE datname = 'postgres'";
        assert_eq!(text(shard, collation).await, "C.UTF-8");
        let service = shard
            .connect("pgherd", "postgres")
            .await
            .expect("the service role logs in");
        let row = service
            .query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])
            .await
            .expect("role");
        assert!(row.get::<_, bool>(0));
    }
    let identifier = "SELECT system_identifier::text FROM pg_control_system()";
    assert_ne!(
        text(cluster.shard(1), identifier).await,
        text(cluster.shard(2), identifier).await
    );
    let data = cluster.data().to_path_buf();
    cluster.stop().await;
    assert!(!data.exists(), "an ephemeral cluster leaves no files");
    assert_eq!(
        serving(&data),
        Vec::<u32>::new(),
        "an ephemeral cluster leaves no processes"
    );
}

#[tokio::test]
async fn a_killed_shard_recovers_what_was_committed() {
    let cluster = LocalCluster::ephemeral(2).await.expect("start");
    let client = cluster.shard(2).connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute("CREATE TABLE t(a int); INSERT INTO t VALUES (42)")
        .await
        .expect("insert");
    cluster.kill_shard(2).await;
    assert!(cluster.shard(2).pid().is_none());
    assert!(
        client.simple_query("SELECT 1").await.is_err(),
        "its sessions are cut off"
    );
    assert_eq!(text(cluster.shard(1), "SELECT 'alive'").await, "alive");
    cluster.restart_shard(2).await.expect("restart");
    assert_eq!(text(cluster.shard(2), "SELECT a::text FROM t").await, "42");
}

#[tokio::test]
async fn a_panic_leaves_nothing() {
    let seen = Arc::new(Mutex::new(None));
    let told = seen.clone();
    let outcome = tokio::spawn(async move {
        let cluster = LocalCluster::ephemeral(1).await.expect("start");
        *told.lock().expect("lock") = Some(cluster.data().to_path_buf());
        panic!("as a failing test does");
    });
    assert!(outcome.await.is_err());
    let data = seen.lock().expect("lock").take().expect("the cluster had started");
    assert!(!data.exists());
    assert_eq!(serving(&data), Vec::<u32>::new());
}

#[tokio::test]
async fn the_plain_server_listens_on_tcp_when_asked() {
    let plain = PlainServer::ephemeral(true).await.expect("start");
    let address = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", plain.port());
    let (client, connection) = tokio_postgres::connect(&address, tokio_postgres::NoTls)
        .await
        .expect("TCP");
    let connection = tokio::spawn(connection);
    let row = client
        .query_one("SELECT current_setting('max_prepared_transactions')", &[])
        .await
        .expect("query");
    assert_eq!(row.get::<_, String>(0), "0", "it is as PostgreSQL comes");
    drop(client);
    connection.await.expect("task").expect("connection");
}

#[tokio::test]
async fn the_second_start_finds_the_data() {
    let place = place();
    let data = place.path().join("data");
    let options = |shards| Options {
        durable: false,
        ..Options::new(&data, shards)
    };
    let cluster = LocalCluster::start(options(2)).await.expect("first start");
    let client = cluster.shard(2).connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute("CREATE TABLE t AS SELECT 7 AS a")
        .await
        .expect("insert");

    match LocalCluster::start(options(2)).await.err() {
        Some(Error::InUse { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
        other => panic!("two cannot work on one folder: {other:?}"),
    }
    cluster.stop().await;
    assert!(serving(&data).is_empty());

    match LocalCluster::start(options(3)).await.err() {
        Some(error @ Error::OtherShardCount { .. }) => assert!(error.to_string().contains("--shards 2"), "{error}"),
        other => panic!("another number of shards is refused: {other:?}"),
    }
    assert!(serving(&data).is_empty(), "what is refused starts nothing");

    let cluster = LocalCluster::start(options(2)).await.expect("second start");
    assert_eq!(text(cluster.shard(2), "SELECT a::text FROM t").await, "7");
    cluster.stop().await;

    std::fs::remove_dir_all(data.join("shard2")).expect("lose a shard");
    match LocalCluster::start(options(2)).await.err() {
        Some(Error::MissingShard { shard, .. }) => assert_eq!(shard, "shard2"),
        other => panic!("lost data is not replaced by an empty server: {other:?}"),
    }
}

/// Not a test of its own: what `running_shards_are_taken_over` kills. Without the variable it has nothing to do.
#[tokio::test]
async fn be_killed() {
    let Some(data) = std::env::var_os("PGHERD_TEST_BE_KILLED") else {
        return;
    };
    let cluster = if data == "ephemeral" {
        LocalCluster::ephemeral(1).await
    } else {
        LocalCluster::start(Options::new(data, 2)).await
    };
    let cluster = cluster.expect("start");
    println!("\nDATA={}", cluster.data().display());
    std::future::pending::<()>().await;
}

/// Runs `be_killed` in a process of its own, kills that with SIGKILL, and returns the folder that it worked on.
async fn start_and_kill(data: &std::ffi::OsStr) -> std::path::PathBuf {
    use std::io::BufRead;
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "be_killed", "--nocapture"])
        .env("PGHERD_TEST_BE_KILLED", data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let lines = std::io::BufReader::new(child.stdout.take().expect("stdout")).lines();
    let folder = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("DATA=").map(Into::into));
    child.kill().expect("kill");
    child.wait().expect("wait");
    folder.expect("the cluster had started")
}

#[tokio::test(flavor = "multi_thread")]
async fn running_shards_are_taken_over() {
    let place = place();
    let data = place.path().join("data");
    let folder = start_and_kill(data.as_os_str()).await;
    let left = serving(&folder);
    assert_eq!(left.len(), 2, "a kept cluster's shards outlive a kill -9");

    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let progress = Arc::new(move |event| told.lock().expect("lock").push(event));
    let cluster = LocalCluster::start(Options {
        progress,
        ..Options::new(&data, 2)
    })
    .await
    .expect("take over");
    assert!(
        events
            .lock()
            .expect("lock")
            .contains(&Event::TakenOver("shard2".into()))
    );
    let pids: Vec<_> = cluster.shards().iter().filter_map(|shard| shard.pid()).collect();
    assert!(
        pids.len() == 2 && pids.iter().all(|pid| left.contains(pid)),
        "{pids:?} {left:?}"
    );
    cluster.stop().await;
    assert_eq!(
        serving(&folder),
        Vec::<u32>::new(),
        "what was taken over is stopped too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_test_leaves_nothing() {
    let folder = start_and_kill("ephemeral".as_ref()).await;
    until("the watchdog removes the servers and the folder", || {
        !folder.exists() && serving(&folder).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_lock_file_with_a_reused_process_number_does_not_stop_a_start() {
    let place = place();
    let options = || Options {
        durable: false,
        ..Options::new(place.path().join("data"), 1)
    };
    let cluster = LocalCluster::start(options()).await.expect("start");
    let lock = cluster.shard(1).folder().join("postmaster.pid");
    let text = std::fs::read_to_string(&lock).expect("lock file");
    cluster.kill_shard(1).await;
    cluster.stop().await;
    // This process's number: alive, and not a PostgreSQL.
    let rest = text.split_once('\n').expect("lines").1;
    std::fs::write(&lock, format!("{}\n{rest}", std::process::id())).expect("write");
    let cluster = LocalCluster::start(options()).await.expect("start again");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postmaster_that_was_killed_hard_is_started_again() {
    let place = place();
    let options = || Options {
        durable: false,
        ..Options::new(place.path().join("data"), 1)
    };
    let cluster = LocalCluster::start(options()).await.expect("start");
    // A backend that is busy notices late that its postmaster is gone, and holds the shared memory until then.
    let client = cluster.shard(1).connect("postgres", "postgres").await.expect("connect");
    let busy = tokio::spawn(async move {
        client
            .simple_query("SELECT count(*) FROM generate_series(1, 20000000)")
            .await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pid = cluster.shard(1).pid().expect("running");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill");
    cluster.restart_shard(1).await.expect("restart");
    assert_eq!(text(cluster.shard(1), "SELECT 'back'").await, "back");
    let _ = busy.await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_long_path_has_its_sockets_elsewhere() {
    let place = place();
    let data = place.path().join("a-long-name-".repeat(10));
    let cluster = LocalCluster::start(Options {
        durable: false,
        ..Options::new(&data, 1)
    })
    .await
    .expect("start");
    let sockets = cluster.shard(1).socket_dir().to_path_buf();
    assert!(sockets.starts_with("/tmp"), "{sockets:?}");
    assert_eq!(std::fs::read_link(data.join("sockets")).expect("a link"), sockets);
    assert_eq!(text(cluster.shard(1), "SELECT 'here'").await, "here");
    cluster.stop().await;
    assert!(
        !sockets.exists(),
        "a stopped cluster leaves nothing outside of its folder"
    );
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let place = place();
    let settings = vec![("shared_buffers".to_string(), "a lot".to_string())];
    let options = Options {
        durable: false,
        settings,
        ..Options::new(place.path().join("data"), 1)
    };
    match LocalCluster::start(options).await.err() {
        Some(error @ Error::NotStarted { .. }) => {
            assert!(
                error
                    .to_string()
                    .contains("invalid value for parameter \"shared_buffers\""),
                "{error}"
            );
        }
        other => panic!("it cannot have started: {other:?}"),
    }
}

#[tokio::test]
async fn root_keeps_the_shards_of_a_closed_folder_elsewhere() {
    let closed = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).expect("close to others");
    let data = closed.path().join("data");
    if closed.path().metadata().expect("owner").uid() != 0 {
        return; // Only root's servers run as somebody else.
    }
    let options = || Options {
        durable: false,
        ..Options::new(&data, 2)
    };
    let cluster = LocalCluster::start(options()).await.expect("start");
    let storage = cluster.shard(1).folder().parent().expect("parent").to_path_buf();
    let client = cluster.shard(2).connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute("CREATE TABLE t AS SELECT 7 AS a")
        .await
        .expect("insert");
    assert!(!storage.starts_with(&data));
    assert_eq!(
        std::fs::read_link(data.join("shard2")).expect("a link"),
        storage.join("shard2")
    );
    cluster.stop().await;
    let cluster = LocalCluster::start(options()).await.expect("start again");
    assert_eq!(text(cluster.shard(2), "SELECT a::text FROM t").await, "7");
    cluster.stop().await;
    std::fs::remove_dir_all(storage).expect("clean up");
}
