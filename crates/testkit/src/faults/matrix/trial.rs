//! One case, from its beginning to its verdict.

use super::Verdict;
use super::case::{Case, Companion, Fault, Path};
use super::stage::Stage;
use crate::Result;
use crate::herd::{Gateway, Starting};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long something may stay prepared once everything is back.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// A lease, and somewhat more.
const LEASE: Duration = Duration::from_millis(6500);
/// How long another gateway may take to finish what a dead one left.
const LEASE_LIMIT: Duration = Duration::from_secs(12);
/// How long short faults last.
const SHORT: Duration = Duration::from_secs(3);
/// How long a client waits for its answer: for a shard's answer, then for its fence, and some for a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(75);

/// From one try's id to the next one's.
const AGAIN: i64 = 1_000_000;

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Committed,
    Refused(String),
    Unknown(String),
    Nothing,
}

impl Told {
    fn text(&self) -> String {
        match self {
            Told::Committed => "COMMIT".into(),
            Told::Refused(state) | Told::Unknown(state) => state.clone(),
            Told::Nothing => "hangs".into(),
        }
    }
}

/// What a case needs on its way.
struct Trial<'a> {
    case: &'a Case,
    stage: &'a mut Stage,
    id: i64,
    wrong: Vec<String>,
    /// the gateway that recovers, while it is starting
    starting: Option<Starting>,
}

pub(super) async fn run(stage: &mut Option<Stage>, program: &std::path::Path, case: &Case, id: i64) -> Result<Verdict> {
    if stage.is_none() {
        *stage = Some(Stage::start(program).await?);
    }
    let stage = stage.as_mut().expect("started");
    stage.set_companion(case.companion == Companion::Alive).await?;
    stage.wake_subject().await?;
    let trial = Trial {
        case,
        stage,
        id,
        wrong: Vec::new(),
        starting: None,
    };
    trial.run().await
}

impl Trial<'_> {
    async fn run(mut self) -> Result<Verdict> {
        let mut client = self.begin().await?;
        let mut reached = self.stage.reached(self.case.point).await;
        if !reached && client.is_finished() {
            // A gateway that an earlier case made look dead is told so once, by its next commit.
            match (&mut client).await {
                Ok(Told::Refused(state)) if state == "40001" => {
                    self.id += AGAIN;
                    client = self.begin().await?;
                    reached = self.stage.reached(self.case.point).await;
                }
                told => client = tokio::spawn(async move { told.unwrap_or(Told::Nothing) }),
            }
        }
        self.signal_companion(Signal::SIGCONT);
        if !reached {
            self.wrong.push("the step was not reached".into());
            self.stage.release();
        } else {
            self.strike(&client).await?;
        }
        self.stage.release();
        self.stage.proxies.iter().for_each(|p| p.silence(false));
        self.take_started().await?;
        self.stage.wake_subject().await?;
        let back = Instant::now();
        if !self.stage.settles(SETTLE_LIMIT).await {
            self.wrong.push(format!("something is prepared after {SETTLE_LIMIT:?}"));
            self.stage.settles(Duration::from_secs(30)).await;
        }
        let settled_ms = back.elapsed().as_millis() as u64;
        let told = match self.answered(&client).await {
            true => client.await.unwrap_or(Told::Nothing),
            false => Told::Nothing,
        };
        let committed = self.judge(&told).await?;
        if self.case.fault == Fault::Pause && self.case.companion == Companion::Alive {
            // It was taken for dead, and its next commit would be refused for that: the next case gets another life of it.
            self.stage.subject = None;
        }
        Ok(Verdict {
            case: self.case.to_string(),
            told: told.text(),
            committed,
            settled_ms,
            wrong: self.wrong,
        })
    }

    /// Sends the transaction on its way to the step.
    async fn begin(&mut self) -> Result<JoinHandle<Told>> {
        let first = match self.case.path {
            Path::Commit | Path::Refused | Path::Last => self.case.point,
            Path::Lost | Path::RecoverHalf => "before prepare 2",
            Path::RecoverWhole => "before commit 1",
        };
        self.stage.hold(first)?;
        let gateway = self.stage.subject()?;
        let config = gateway.config();
        let client = tokio::spawn(transfer(config, self.id, self.case.path));
        match self.case.path {
            Path::Commit | Path::Refused | Path::Last => return Ok(client),
            _ if !self.stage.reached(first).await => return Ok(client),
            _ => {}
        }
        if self.case.path != Path::RecoverWhole {
            self.stage.end_backends(2).await?;
        }
        match self.case.path {
            Path::Lost => self.stage.hold(self.case.point)?,
            Path::RecoverHalf => {
                self.stage.hold("before fence 2")?;
                if self.stage.reached("before fence 2").await {
                    self.recover()?;
                }
            }
            _ => self.recover()?,
        }
        Ok(client)
    }

    /// The gateway dies where it is, and its next life stops at the step.
    fn recover(&mut self) -> Result<()> {
        if let Some(gateway) = self.stage.subject.take() {
            gateway.signal(Signal::SIGKILL);
        }
        self.stage.hold(self.case.point)?;
        // The next life tells everybody that the last one is over; the other gateway must not be faster than this one.
        self.signal_companion(Signal::SIGSTOP);
        self.starting = Some(self.stage.begin_subject()?);
        Ok(())
    }

    /// What happens at the step, until everything is about to come back.
    async fn strike(&mut self, client: &JoinHandle<Told>) -> Result<()> {
        let with_another = self.case.companion == Companion::Alive;
        match self.case.fault {
            Fault::Kill => {
                self.kill_subject();
                if with_another && !self.stage.settles(LEASE_LIMIT).await {
                    self.wrong
                        .push(format!("the other gateway did not finish it in {LEASE_LIMIT:?}"));
                }
                self.stage.release();
            }
            Fault::Pause => {
                self.signal_subject(Signal::SIGSTOP);
                if with_another {
                    // Also where nothing is prepared yet: it is to wake without a lease.
                    tokio::time::sleep(LEASE).await;
                    if !self.stage.settles(LEASE_LIMIT).await {
                        self.wrong
                            .push(format!("the other gateway did not finish it in {LEASE_LIMIT:?}"));
                    }
                } else {
                    tokio::time::sleep(SHORT).await;
                }
                self.stage.release();
                self.signal_subject(Signal::SIGCONT);
            }
            Fault::Disconnect => {
                self.stage.proxies.iter().for_each(|p| p.cut());
                self.stage.release();
            }
            Fault::Silence => {
                self.stage.proxies.iter().for_each(|p| p.silence(true));
                self.stage.release();
                tokio::time::sleep(SHORT).await;
                self.stage.proxies.iter().for_each(|p| p.silence(false));
            }
            Fault::LongSilence => {
                self.stage.proxies[1].silence(true);
                self.stage.release();
                if !self.answered(client).await {
                    self.wrong.push(format!("no answer in {ANSWER_LIMIT:?}"));
                }
                self.stage.proxies[1].silence(false);
            }
            Fault::Crash(shard) => {
                self.stage.herd.cluster().kill_shard(shard).await;
                self.stage.release();
                tokio::time::sleep(Duration::from_millis(500)).await;
                self.stage.herd.cluster().restart_shard(shard).await?;
            }
            Fault::Freeze(shard) => {
                self.stage.signal_shard(shard, Signal::SIGSTOP);
                self.stage.release();
                tokio::time::sleep(SHORT).await;
                self.stage.signal_shard(shard, Signal::SIGCONT);
            }
        }
        Ok(())
    }

    fn signal_subject(&mut self, signal: Signal) {
        match (&self.stage.subject, &self.starting) {
            (Some(gateway), _) => gateway.signal(signal),
            (None, Some(starting)) => starting.signal(signal),
            (None, None) => {}
        }
    }

    fn signal_companion(&self, signal: Signal) {
        if let Some(gateway) = &self.stage.companion {
            gateway.signal(signal);
        }
    }

    fn kill_subject(&mut self) {
        self.signal_subject(Signal::SIGKILL);
        self.stage.subject = None;
        self.starting = None;
    }

    /// The gateway that was starting goes on, or has died of what happened: then it is started again.
    async fn take_started(&mut self) -> Result<()> {
        if let Some(starting) = self.starting.take() {
            self.stage.subject = starting.finish().await.ok();
        }
        if self
            .stage
            .subject
            .as_mut()
            .is_some_and(|g: &mut Gateway| !g.is_running())
        {
            self.stage.subject = None;
        }
        Ok(())
    }

    /// Waits until the client has an answer; whether it has.
    async fn answered(&self, client: &JoinHandle<Told>) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < ANSWER_LIMIT && !client.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.is_finished()
    }

    /// Compares what is there with what was told; whether it is committed.
    async fn judge(&mut self, told: &Told) -> Result<bool> {
        let shown = self.stage.shown_on(self.id).await?;
        let committed = shown.iter().all(|s| *s);
        if !committed && shown.iter().any(|s| *s) {
            self.wrong.push(format!("torn: {shown:?}"));
        }
        match told {
            Told::Committed if !committed => self.wrong.push("acknowledged, and not there".into()),
            Told::Refused(state) if committed => self.wrong.push(format!("refused with {state}, and there")),
            Told::Nothing => self.wrong.push("its client hangs".into()),
            _ => {}
        }
        for gateway in [&self.stage.subject, &self.stage.companion].into_iter().flatten() {
            let errors = gateway.errors();
            for sign in ["panicked", "leave it to a person", "which other shards have committed"] {
                if let Some(line) = errors.lines().find(|line| line.contains(sign)) {
                    self.wrong.push(format!("a gateway said: {line}"));
                }
            }
        }
        Ok(committed)
    }
}

/// One transaction on both shards.
async fn transfer(config: tokio_postgres::Config, id: i64, path: Path) -> Told {
    let connected = config.connect(tokio_postgres::NoTls).await;
    let Ok((client, connection)) = connected else {
        return Told::Refused("no connection".into());
    };
    tokio::spawn(connection);
    let first = match path {
        // By the trigger that the stage has made there.
        Path::Refused => "SET LOCAL faults.refused = 'on';",
        // What used a temporary table is not prepared, on the shard where that is: the home shard.
        Path::Last => "CREATE TEMPORARY TABLE scratch (a int) ON COMMIT DROP;",
        _ => "",
    };
    let sql = format!("BEGIN; {first} INSERT INTO ledger VALUES ({id}); INSERT INTO ledger VALUES (-{id})");
    if let Err(error) = client.batch_execute(&sql).await {
        return Told::Refused(format!("before COMMIT: {}", state_of(&error)));
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => Told::Committed,
        Err(error) => match error.code().map(|c| c.code()) {
            Some("08007") => Told::Unknown("08007".into()),
            Some(state) => Told::Refused(state.into()),
            None => Told::Unknown("no answer".into()),
        },
    }
}

fn state_of(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |c| c.code().into())
}
