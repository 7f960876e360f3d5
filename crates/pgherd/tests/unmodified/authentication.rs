//! libpq's own SCRAM, MD5 and TLS against a gateway whose rules ask for them.

use super::program;
use pgherd_testkit::herd::{self, Gateway, Herd};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Logs in with psql; what it printed, or what it was told.
async fn log_in(
    herd: &Herd,
    gateway: &Gateway,
    user: &str,
    password: &str,
    more: &[(&str, &str)],
) -> Result<String, String> {
    tell(herd, gateway, (user, password), more, "SELECT current_user").await
}

/// What a query prints, asked in this way.
async fn tell(
    herd: &Herd,
    gateway: &Gateway,
    (user, password): (&str, &str),
    more: &[(&str, &str)],
    sql: &str,
) -> Result<String, String> {
    let mut command = program(herd, gateway, "psql");
    command.env("PGUSER", user).env("PGPASSWORD", password);
    // No certificate of the account that runs the test.
    command.env("HOME", herd.folder());
    command.envs(more.iter().copied());
    command.args(["-XAtqw", "-c", sql]);
    match herd::run("psql", command).await {
        Ok(printed) => Ok(printed.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn refused(outcome: Result<String, String>, why: &str) {
    let said = outcome.expect_err(why);
    assert!(said.contains(why), "{why}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 2)
        .await
        .expect("shards");
    let trusting = herd.gateway("trusting").await.expect("gateway");
    let rules = r#"access = ["host all +old all md5", "host all eve all reject", "host postgres all 127.0.0.1/32 scram-sha-256"]"#;
    let gateway = herd.gateway_with_settings("asking", rules).await.expect("gateway");
    let admin = trusting.connect().await.expect("connect");
    let run = async |sql: &str| admin.batch_execute(sql).await.expect(sql);
    run("CREATE ROLE alice LOGIN PASSWORD 'wonder land'; CREATE ROLE bare LOGIN; CREATE ROLE idle PASSWORD 'x';
         CREATE ROLE late LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01'; CREATE ROLE eve LOGIN PASSWORD 'x';
         CREATE ROLE old; SET password_encryption = 'md5'; CREATE ROLE uncle LOGIN PASSWORD 'x' IN ROLE old;
         CREATE ROLE lost LOGIN PASSWORD 'x'; RESET password_encryption; CREATE ROLE aunt LOGIN PASSWORD 'y' IN ROLE old")
    .await;
    let try_in = async |user: &str, password: &str| log_in(&herd, &gateway, user, password, &[]).await;

    assert_eq!(try_in("alice", "wonder land").await.expect("right"), "alice");
    let wrong = |user: &str| format!("password authentication failed for user \"{user}\"");
    refused(try_in("alice", "wonderland").await, &wrong("alice"));
    refused(try_in("alice", "").await, "no password supplied");
    // From outside these look the same.
    for user in ["bare", "late", "nobody", "lost"] {
        refused(try_in(user, "x").await, &wrong(user));
    }
    refused(try_in("idle", "x").await, "role \"idle\" is not permitted to log in");
    refused(
        try_in("eve", "x").await,
        "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"eve\", database \"postgres\", no encryption",
    );
    refused(try_in("pgherd", "x").await, "pgherd");
    let elsewhere = log_in(&herd, &gateway, "alice", "wonder land", &[("PGDATABASE", "template1")]).await;
    refused(
        elsewhere,
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"alice\", database \"template1\", no encryption",
    );

    assert_eq!(try_in("uncle", "x").await.expect("MD5"), "uncle");
    refused(try_in("uncle", "y").await, &wrong("uncle"));
    assert_eq!(
        try_in("aunt", "y").await.expect("SCRAM, though the rule says md5"),
        "aunt"
    );

    run("ALTER ROLE alice PASSWORD 'new'; ALTER ROLE late VALID UNTIL 'infinity'").await;
    refused(try_in("alice", "wonder land").await, &wrong("alice"));
    assert_eq!(try_in("alice", "new").await.expect("changed"), "alice");
    assert_eq!(try_in("late", "x").await.expect("valid again"), "late");
    // The connection to the home shard that passwords are read on is made again.
    let home = herd
        .cluster()
        .shard(1)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    home.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgherd service'",
    )
    .await
    .expect("terminate");
    let again = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            if let Ok(user) = try_in("alice", "new").await {
                return user;
            }
        }
    });
    assert_eq!(again.await.expect("in time"), "alice");
}

/// An authority, and files in a folder for certificates that it signs.
pub(super) struct Authority<'a> {
    issuer: CertifiedIssuer<'static, KeyPair>,
    herd: &'a Herd,
}

impl<'a> Authority<'a> {
    pub(super) fn new(herd: &'a Herd) -> Self {
        Self::named(herd, "authority")
    }

    /// Its certificate is in `name`.crt.
    pub(super) fn named(herd: &'a Herd, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
        let this = Self { issuer, herd };
        this.write(&format!("{name}.crt"), &this.issuer.pem());
        this
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.herd.folder().join(name);
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        self.herd.account().own(&path).expect("chown");
        path
    }

    /// `name`.crt and `name`.key, for a certificate with that common name.
    pub(super) fn sign(&self, name: &str) {
        self.sign_for(name, &["localhost", "127.0.0.1"]);
    }

    /// The same for a server with these names.
    pub(super) fn sign_for(&self, name: &str, hosts: &[&str]) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_connections() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 1)
        .await
        .expect("shard");
    let authority = Authority::new(&herd);
    authority.sign("gateway");
    authority.sign("alice");
    let trusting = herd.gateway("trusting").await.expect("gateway");
    let admin = trusting.connect().await.expect("connect");
    admin
        .batch_execute("CREATE ROLE alice LOGIN PASSWORD 'x'; CREATE ROLE bob LOGIN PASSWORD 'x'; CREATE ROLE carol LOGIN PASSWORD 'x'")
        .await
        .expect("roles");
    let files =
        "tls_certificate = \"gateway.crt\"\ntls_key = \"gateway.key\"\ntls_client_authorities = \"authority.crt\"\n";
    let rules = r#"access = ["hostssl all alice all cert", "hostssl all bob all scram-sha-256 clientcert=verify-ca", "hostssl all all all scram-sha-256"]"#;
    let gateway = herd
        .gateway_with_settings("tls", &format!("{files}{rules}"))
        .await
        .expect("gateway");

    let folder = herd.folder();
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (root, certificate, key) = (file("authority.crt"), file("alice.crt"), file("alice.key"));
    let checked = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root)];
    let bound = [&checked[..], &[("PGCHANNELBINDING", "require")]].concat();
    let shown = [
        &checked[..],
        &[("PGSSLCERT", certificate.as_str()), ("PGSSLKEY", key.as_str())],
    ]
    .concat();
    let try_in = async |user: &str, more: &[(&str, &str)]| log_in(&herd, &gateway, user, "x", more).await;

    assert_eq!(try_in("carol", &checked).await.expect("TLS"), "carol");
    assert_eq!(try_in("carol", &bound).await.expect("channel binding"), "carol");
    let ssl = tell(&herd, &gateway, ("carol", "x"), &checked, "SHOW ssl").await;
    assert_eq!(ssl.expect("TLS"), "on");
    // Drivers tell a server that has ended the session from a line that broke.
    let terminating = "SELECT pg_terminate_backend(pg_backend_pid())";
    refused(
        tell(&herd, &gateway, ("carol", "x"), &checked, terminating).await,
        "SSL connection has been closed unexpectedly",
    );
    refused(
        try_in("carol", &[("PGSSLMODE", "disable")]).await,
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"carol\", database \"postgres\", no encryption",
    );
    assert_eq!(try_in("alice", &shown).await.expect("certificate"), "alice");
    refused(
        try_in("alice", &checked).await,
        "connection requires a valid client certificate",
    );
    assert_eq!(try_in("bob", &shown).await.expect("signed, and the password"), "bob");
    refused(
        try_in("bob", &checked).await,
        "connection requires a valid client certificate",
    );
    // alice's certificate does not make anybody else.
    let only_certificates = herd
        .gateway_with_settings("cert", &format!("{files}access = [\"hostssl all all all cert\"]"))
        .await
        .expect("gateway");
    refused(
        log_in(&herd, &only_certificates, "bob", "x", &shown).await,
        "certificate authentication failed for user \"bob\"",
    );

    let without = herd
        .gateway_with_settings("wrong", "access = [\"hostssl all all all trust\"]")
        .await
        .err()
        .expect("no certificate");
    assert!(without.to_string().contains("tls_certificate"), "{without}");
    let key = folder.join("gateway.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let open = herd
        .gateway_with_settings("open", files)
        .await
        .err()
        .expect("a key that others can read");
    assert!(open.to_string().contains("chmod 600"), "{open}");
}
