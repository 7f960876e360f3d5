//! Kills and pauses gateways and shards, one after the other, while clients work.
//!
//! One fault at a time, and then a while without: what happens with two at once is the business of the tests of each
//! protocol step. Everything runs again when the nemesis ends.

use super::stage::Stage;
use crate::herd::{Gateway, Herd};
use crate::wire::Target;
use crate::{Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a shard is down.
const DOWN: Duration = Duration::from_millis(500);
/// A short pause, in which nobody takes the paused one for dead.
const SHORT_PAUSE: Duration = Duration::from_millis(1500);
/// A pause after which a gateway's lease is over: others finish what it left, before it wakes up.
const LONG_PAUSE: Duration = Duration::from_secs(9);

/// What is done to a part of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `kill -9` of a gateway, and a new one.
    KillGateway,
    /// SIGSTOP of a gateway, and SIGCONT.
    PauseGateway,
    /// The same, for longer than its lease.
    OutlastLease,
    /// A shard crashes and is started again.
    CrashShard,
    /// SIGSTOP of a shard's processes, and SIGCONT.
    PauseShard,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 5] = [
        Fault::KillGateway,
        Fault::PauseGateway,
        Fault::CrashShard,
        Fault::PauseShard,
        Fault::OutlastLease,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::KillGateway => "gateway killed",
            Fault::PauseGateway => "gateway paused",
            Fault::OutlastLease => "gateway paused for longer than its lease",
            Fault::CrashShard => "shard crashed",
            Fault::PauseShard => "shard paused",
        })
    }
}

pub(super) struct Nemesis<'a> {
    pub(super) herd: &'a Herd,
    pub(super) gateways: Vec<Gateway>,
    pub(super) stage: Arc<Stage>,
    /// Each kind, with how often it was done.
    pub(super) done: BTreeMap<Fault, u64>,
    random: StdRng,
}

/// How a client connects to a gateway.
pub(super) fn target(gateway: &Gateway) -> Result<Target> {
    format!("postgres://postgres@127.0.0.1:{}/postgres", gateway.port()).parse()
}

fn name(number: usize) -> String {
    format!("histories{number}")
}

/// Starts the gateways of a run.
pub(super) async fn gateways(herd: &Herd, count: usize) -> Result<Vec<Gateway>> {
    let mut gateways = Vec::with_capacity(count);
    for number in 0..count {
        gateways.push(herd.gateway(&name(number)).await?);
    }
    Ok(gateways)
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(herd: &'a Herd, gateways: Vec<Gateway>, stage: Arc<Stage>) -> Self {
        let random = StdRng::seed_from_u64(stage.seed);
        Self {
            herd,
            gateways,
            stage,
            done: BTreeMap::new(),
            random,
        }
    }

    /// Does faults of these kinds in rounds, each kind once a round, until told to stop. The one at hand is ended first.
    pub(super) async fn run(&mut self, faults: &[Fault], between: Duration, stop: &tokio::sync::Notify) -> Result<()> {
        let mut left: Vec<Fault> = Vec::new();
        loop {
            let pause = between.mul_f64(self.random.random_range(0.5..1.5));
            tokio::select! {
                () = stop.notified() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if left.is_empty() {
                left = faults.to_vec();
                left.shuffle(&mut self.random);
            }
            let Some(fault) = left.pop() else { continue };
            self.inflict(fault).await?;
            *self.done.entry(fault).or_default() += 1;
        }
    }

    async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillGateway => {
                let number = self.random.random_range(0..self.gateways.len());
                let dead = self.gateways.remove(number);
                self.check_voice(&dead);
                dead.kill().await;
                let gateway = self.herd.gateway(&name(number)).await?;
                self.stage.moved(number, target(&gateway)?);
                self.gateways.insert(number, gateway);
            }
            Fault::PauseGateway | Fault::OutlastLease => {
                let number = self.random.random_range(0..self.gateways.len());
                let pause = if fault == Fault::PauseGateway {
                    SHORT_PAUSE
                } else {
                    LONG_PAUSE
                };
                self.gateways[number].signal(Signal::SIGSTOP);
                tokio::time::sleep(pause).await;
                self.gateways[number].signal(Signal::SIGCONT);
            }
            Fault::CrashShard => {
                let shard = self.shard();
                self.herd.cluster().kill_shard(shard).await;
                tokio::time::sleep(DOWN).await;
                self.herd.cluster().restart_shard(shard).await?;
            }
            Fault::PauseShard => {
                let paused = Paused::shard(self.herd, self.shard());
                tokio::time::sleep(SHORT_PAUSE).await;
                drop(paused);
            }
        }
        Ok(())
    }

    fn shard(&mut self) -> u32 {
        self.random.random_range(1..=self.herd.cluster().shards().len() as u32)
    }

    /// A gateway never panics, whatever happens to the others.
    fn check_voice(&self, gateway: &Gateway) {
        let said = gateway.errors();
        if let Some(line) = said.lines().find(|line| line.contains("panicked")) {
            self.stage.note("panic", line);
        }
    }

    /// Everything runs; the gateways are stopped, which they must do well.
    pub(super) async fn end(mut self) -> Result<BTreeMap<Fault, u64>> {
        for gateway in std::mem::take(&mut self.gateways) {
            self.check_voice(&gateway);
            if !gateway.stop().await {
                return Err(Error::Program {
                    program: "pgherd gateway".into(),
                    output: "it did not stop well or in time".into(),
                });
            }
        }
        Ok(self.done)
    }
}

/// A shard whose processes have been stopped; they go on when this is dropped.
struct Paused(Vec<Pid>);

impl Paused {
    fn shard(herd: &Herd, shard: u32) -> Self {
        let postmaster = herd.cluster().shard(shard).pid();
        // The postmaster first, so that it starts no more while the others are stopped.
        let mut stopped = Vec::new();
        for pid in postmaster.map(processes_of).unwrap_or_default() {
            let pid = Pid::from_raw(pid as i32);
            // A child that has ended meanwhile needs no pause.
            if kill(pid, Signal::SIGSTOP).is_ok() {
                stopped.push(pid);
            }
        }
        Self(stopped)
    }
}

/// A process and its children, from `/proc`; nothing where there is none.
fn processes_of(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in front is in parentheses and may hold anything; state and parent come after it.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned());
        let parent_of = rest.and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parent_of == Some(parent)
    };
    std::iter::once(parent).chain(pids.filter(is_child)).collect()
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Backends first: the postmaster is to find them alive.
        for pid in self.0.iter().rev() {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}
