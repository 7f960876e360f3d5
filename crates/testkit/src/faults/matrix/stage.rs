//! Where the cases are played: two shards, a gateway that can be stopped at a step and whose way to the shards can be cut or
//! silenced, and another gateway that is left alone.

use crate::faults::proxy::Proxy;
use crate::herd::{Gateway, Herd, Starting, file_error};
use crate::{Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a step may be away from the statement that leads to it.
const REACH_LIMIT: Duration = Duration::from_secs(20);

pub(super) struct Stage {
    /// the gateway that things happen to; none while it is dead
    pub subject: Option<Gateway>,
    pub companion: Option<Gateway>,
    pub proxies: Vec<Proxy>,
    config: PathBuf,
    control: PathBuf,
    // Dropped last: the gateways end before their shards.
    pub herd: Herd,
}

impl Stage {
    pub async fn start(program: &Path) -> Result<Self> {
        let herd = Herd::start(program, 2).await?;
        let mut proxies = Vec::new();
        for shard in herd.cluster().shards() {
            let folder = herd.folder().join(format!("by-{}", shard.name()));
            proxies.push(Proxy::start(shard, &folder, herd.account())?);
        }
        let config = herd.config_through("subject.toml", proxies.iter().map(Proxy::address))?;
        let control = herd.folder().join("control");
        std::fs::create_dir(&control).map_err(file_error(&control))?;
        herd.account().own(&control)?;
        let mut stage = Self {
            subject: None,
            companion: None,
            proxies,
            config,
            control,
            herd,
        };
        stage.wake_subject().await?;
        let client = stage.subject()?.connect().await?;
        client
            .batch_execute(
                "SET pgherd.initial_bounds = 'bigint 0';
                 CREATE TABLE ledger (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
            )
            .await?;
        // Shard 2 can be made to refuse PREPARE, behind the gateways' backs.
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF current_setting('faults.refused', true) = 'on' THEN
                    CREATE TEMPORARY TABLE scratch (a int) ON COMMIT DROP;
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER refuse AFTER INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION refuse()";
        let shard = &stage.herd.cluster().shards()[1];
        shard
            .connect("postgres", "postgres")
            .await?
            .batch_execute(refuse)
            .await?;
        Ok(stage)
    }

    pub fn subject(&self) -> Result<&Gateway> {
        self.subject.as_ref().ok_or_else(|| Error::Program {
            program: "pgherd".into(),
            output: "the gateway is not running".into(),
        })
    }

    /// Starts the gateway if it does not run.
    pub async fn wake_subject(&mut self) -> Result<()> {
        if self.subject.is_none() {
            self.subject = Some(self.begin_subject()?.finish().await?);
        }
        Ok(())
    }

    /// Starts the gateway without waiting for it: it may be held at a step of its first recovery.
    pub fn begin_subject(&self) -> Result<Starting> {
        let environment: [(&str, &OsStr); 1] = [("PGHERD_CONTROL_POINTS", self.control.as_os_str())];
        let arguments = ["--metrics-listen", "off"];
        Gateway::begin(self.herd.command(&self.config, "subject", &arguments, &environment))
    }

    pub async fn set_companion(&mut self, wanted: bool) -> Result<()> {
        match (wanted, self.companion.take()) {
            (true, None) => self.companion = Some(self.herd.gateway("companion").await?),
            (true, some) => self.companion = some,
            (false, Some(gateway)) => _ = gateway.stop().await,
            (false, None) => {}
        }
        Ok(())
    }

    /// The next one to come to this step waits there.
    pub fn hold(&self, point: &str) -> Result<()> {
        let reached = self.control.join("reached");
        if reached.exists() {
            std::fs::remove_file(&reached).map_err(file_error(&reached))?;
        }
        // All at once: whoever reads it must not find half a name.
        let (new, hold) = (self.control.join("new"), self.control.join("hold"));
        std::fs::write(&new, point).map_err(file_error(&new))?;
        std::fs::rename(&new, &hold).map_err(file_error(&hold))
    }

    /// Whoever waits goes on.
    pub fn release(&self) {
        let _ = std::fs::remove_file(self.control.join("hold"));
    }

    /// Waits until the step is reached; whether it was.
    pub async fn reached(&self, point: &str) -> bool {
        let begun = Instant::now();
        let reached = self.control.join("reached");
        while begun.elapsed() < REACH_LIMIT {
            if std::fs::read_to_string(&reached).is_ok_and(|text| text == point) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// On which shards the transaction is.
    pub async fn shown_on(&self, id: i64) -> Result<Vec<bool>> {
        let mut shown = Vec::new();
        for shard in self.herd.cluster().shards() {
            let client = shard.connect("postgres", "postgres").await?;
            let sql = "SELECT EXISTS (SELECT FROM ledger WHERE id IN ($1::bigint, -$1::bigint))";
            shown.push(client.query_one(sql, &[&id]).await?.try_get(0)?);
        }
        Ok(shown)
    }

    /// Whether nothing is prepared within the limit.
    pub async fn settles(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if matches!(self.herd.prepared_transactions().await, Ok(0)) {
                return true;
            }
            if begun.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Ends the backends of clients on a shard.
    pub async fn end_backends(&self, shard: u32) -> Result<()> {
        let client = self.herd.cluster().shard(shard).connect("postgres", "postgres").await?;
        let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                   WHERE usename = 'postgres' AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        client.batch_execute(sql).await?;
        Ok(())
    }

    /// Stops or continues all processes of a shard.
    pub fn signal_shard(&self, shard: u32, signal: Signal) {
        let Some(postmaster) = self.herd.cluster().shard(shard).pid() else {
            return;
        };
        let all = std::iter::once(postmaster).chain(children(postmaster));
        for pid in all {
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }

    pub async fn stop(self) {
        for gateway in [self.subject, self.companion].into_iter().flatten() {
            gateway.stop().await;
        }
        drop(self.proxies);
        self.herd.stop().await;
    }
}

/// A shard's backends lead sessions of their own, so a signal to the group would not reach them.
fn children(parent: u32) -> Vec<u32> {
    let Ok(folders) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The command's name, in parentheses, may hold anything.
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    let pids = folders.filter_map(|f| f.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_child).collect()
}
