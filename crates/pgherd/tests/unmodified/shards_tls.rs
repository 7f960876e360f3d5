//! A shard that lets nobody in but over TLS, with a certificate of the gateway's that stands for every role.

use super::authentication::Authority;
use pgherd_local_cluster::{PlainServer, shard_settings};
use pgherd_testkit::herd::{self, Gateway, Herd};
use std::path::Path;
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

/// A server with these rules, and TLS by files of the authority's folder.
async fn shard(herd: &Herd, authority: &Authority<'_>) -> PlainServer {
    let rules = "local all all trust\nhostssl all all 127.0.0.1/32 cert map=herd\n";
    let file = |name: &str| herd.folder().join(name).to_string_lossy().into_owned();
    authority.write("hba.conf", rules);
    authority.write("ident.conf", "herd gateway postgres\nherd gateway alice\n");
    let mut settings = shard_settings();
    for (name, value) in [
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", file("server.crt")),
        ("ssl_key_file", file("server.key")),
        ("ssl_ca_file", file("authority.crt")),
        ("hba_file", file("hba.conf")),
        ("ident_file", file("ident.conf")),
    ] {
        settings.push((name.to_owned(), value));
    }
    PlainServer::ephemeral_with(true, false, settings)
        .await
        .expect("server")
}

/// Writes a configuration of this one shard, and prepares it; or why that was not possible.
async fn prepare(authority: &Authority<'_>, port: u16, tls: &str) -> Result<std::path::PathBuf, String> {
    let secret = "0123456789abcdef".repeat(4);
    let path = authority.write(
        "tls.toml",
        &format!(
            "[cluster]\nname = \"tls\"\nsecret = \"{secret}\"\nservice_role = \"postgres\"\n\n\
             [[shards]]\nid = 1\nname = \"one\"\nhost = \"localhost\"\nport = {port}\n{tls}\n"
        ),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    command.args(["init", "--role", "alice", "--config"]).arg(&path);
    let outcome = herd::run("pgherd init", command)
        .await
        .map_err(|error| error.to_string());
    outcome.map(|_| path)
}

async fn gateway(config: &Path) -> Gateway {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
    command.args([
        "gateway",
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "off",
        "--until-stdin-ends",
        "--config",
    ]);
    command.arg(config);
    Gateway::start(command).await.expect("gateway")
}

async fn alice(gateway: &Gateway) -> Client {
    let mut config = gateway.config();
    let (client, connection) = config.user("alice").connect(NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_shards_are_encrypted() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 1)
        .await
        .expect("a folder");
    let authority = Authority::new(&herd);
    let stranger = Authority::named(&herd, "stranger");
    authority.sign("server");
    authority.sign("gateway");
    stranger.sign("impostor");
    let server = shard(&herd, &authority).await;
    let admin = server.connect("postgres", "postgres").await.expect("socket");
    admin.batch_execute("CREATE ROLE alice LOGIN").await.expect("role");
    let port = server.port();
    let own = "sslcert = \"gateway.crt\"\nsslkey = \"gateway.key\"\n";
    let full = format!("sslmode = \"verify-full\"\nsslrootcert = \"authority.crt\"\n{own}");

    let refused = async |tls: &str, why: &str| {
        let said = prepare(&authority, port, tls).await.expect_err(why);
        assert!(said.contains(why), "{why}: {said}");
    };
    refused("", "no pg_hba.conf entry").await;
    refused(
        "sslmode = \"require\"",
        "connection requires a valid client certificate",
    )
    .await;
    refused(&full.replace("authority", "stranger"), "UnknownIssuer").await;
    let impostor = full.replace("gateway.", "impostor.");
    let said = prepare(&authority, port, &impostor)
        .await
        .expect_err("a stranger's certificate");
    assert!(said.contains("log-in of the service role"), "{said}");

    let config = prepare(&authority, port, &full).await.expect("verify-full");
    let running = gateway(&config).await;
    let client = alice(&running).await;
    let row = client
        .query_one(
            "SELECT ssl, client_dn, current_user::text FROM pg_stat_ssl WHERE pid = (SELECT pid FROM pg_stat_activity \
             WHERE usename = 'alice' AND state = 'active' LIMIT 1)",
            &[],
        )
        .await
        .expect("pg_stat_ssl");
    let seen: (bool, String, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(seen, (true, "/CN=gateway".into(), "alice".into()));
    // A cancel request is encrypted, too.
    let cancel = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    cancel.cancel_query(NoTls).await.expect("cancel");
    let ended = sleeping.await.expect("task").expect_err("cancelled");
    assert_eq!(ended.code().map(|c| c.code()), Some("57014"));
    drop(running);

    // The same authority's certificate, for another host.
    authority.sign_for("server", &["elsewhere.example"]);
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    refused(&full, "not valid for name").await;
    prepare(&authority, port, &full.replace("verify-full", "verify-ca"))
        .await
        .expect("verify-ca");
    prepare(&authority, port, &full.replace("verify-full", "require"))
        .await
        .expect("require");
}
