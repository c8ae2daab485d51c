//! What the collector knows of each sensor: how far it has come, which connection speaks for it, and what was counted.
//!
//! Sequence numbers are judged here, for one process: a batch that this process has passed on already is a repeat, even
//! before it is durable. The store judges again, for all time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use spanwatch_common::health::PortHealth;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::wire::Stats;
use tokio::sync::watch;

use super::Shipment;

/// Most capture ports of one sensor, and letters in the name of one. What is beyond is left out, and counted as malformed.
const PORTS_MAX: usize = 64;
const INTERFACE_LEN_MAX: usize = 64;

/// Most sensors that are remembered. Names come from certificates that we issued, so nobody else can fill this up.
const SENSORS_MAX: usize = 65_536;

/// All sensors.
#[derive(Debug, Default)]
pub struct Registry {
    sensors: Mutex<BTreeMap<String, Sensor>>,
}

/// One sensor.
#[derive(Debug)]
struct Sensor {
    boot: u64,
    /// Last batch of `boot` passed on to the store.
    accepted: u64,
    /// Last batch of `boot` that is durable.
    durable: u64,
    /// Number of the connection that speaks for it, and what that should know.
    session: Option<(u64, watch::Sender<Standing>)>,
    sessions: u64,
    status: Status,
}

/// What a connection should know while it speaks for a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The last durable batch.
    pub up_to: u64,
    /// Whether to go on.
    pub fate: Fate,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Go on.
    Speak,
    /// Another connection speaks for the sensor now.
    Superseded,
    /// The collector stops; everything that will be durable is.
    Closing,
}

/// A connection's right to speak for a sensor.
#[derive(Debug)]
pub struct Session {
    /// Name of the sensor.
    pub sensor: String,
    /// Which start of it.
    pub boot: u64,
    /// Where it should go on.
    pub resume_after: u64,
    /// News for the connection.
    pub standing: watch::Receiver<Standing>,
    number: u64,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Pass it on.
    New,
    /// It has been passed on already: drop it.
    Repeat,
    /// The session has ended: drop it, and the connection.
    Superseded,
}

/// What was counted for one sensor since the collector started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether a connection speaks for it.
    pub connected: bool,
    /// How often one was welcomed.
    pub connects: u64,
    /// New batches.
    pub batches: u64,
    /// Records in them, as they came.
    pub records: u64,
    /// Records that were put together of two halves.
    pub joined: u64,
    /// Halves that found no partner.
    pub lone_halves: u64,
    /// Batches that came again.
    pub repeats: u64,
    /// Batches that never came: the numbers leapt over them.
    pub gaps: u64,
    /// Messages that made no sense.
    pub malformed: u64,
    /// The sensor's latest account.
    pub ledger: Ledger,
    /// How it captures packets.
    pub capture: String,
    /// How many accounts it has sent without records.
    pub accounts: u64,
    /// How well its capture ports do their work, as of the last of these.
    pub ports: Vec<PortHealth>,
}

impl Registry {
    /// How far the sensor has come, if this process knows; else ask the store.
    pub fn durable(&self, name: &str, boot: u64) -> Option<u64> {
        self.lock().get(name).filter(|sensor| sensor.boot == boot).map(|sensor| sensor.durable)
    }

    /// Lets a new connection speak for a sensor, and takes that right from the one before.
    ///
    /// `durable` is how far the store has come with this boot. Returns the newer boot when the connection is from the past.
    ///
    /// # Errors
    /// The number of a later boot that has spoken already, or 0 when too many sensors are known.
    pub fn welcome(&self, name: &str, boot: u64, durable: u64) -> Result<Session, u64> {
        let mut sensors = self.lock();
        if !sensors.contains_key(name) && sensors.len() >= SENSORS_MAX {
            return Err(0);
        }
        let sensor = sensors.entry(name.to_owned()).or_insert_with(|| Sensor {
            boot: 0,
            accepted: 0,
            durable: 0,
            session: None,
            sessions: 0,
            status: Status::default(),
        });
        if boot < sensor.boot {
            return Err(sensor.boot);
        }
        if boot > sensor.boot {
            (sensor.boot, sensor.accepted, sensor.durable) = (boot, durable, durable);
            sensor.status.ports.clear(); // these were counted by the start before
        }
        sensor.accepted = sensor.accepted.max(durable);
        sensor.durable = sensor.durable.max(durable);
        sensor.dismiss(Fate::Superseded);
        sensor.sessions += 1;
        let (sender, standing) = watch::channel(Standing { up_to: sensor.durable, fate: Fate::Speak });
        sensor.session = Some((sensor.sessions, sender));
        sensor.status.connected = true;
        sensor.status.connects += 1;
        let number = sensor.sessions;
        Ok(Session { sensor: name.to_owned(), boot, resume_after: sensor.durable, standing, number })
    }

    /// Judges the batch of this number before it waits for others; counts a repeat. `held` is the last that waits already.
    pub fn preview(&self, session: &Session, sequence: u64, held: Option<u64>) -> Admission {
        self.of(session, |sensor| {
            if sequence > sensor.accepted.max(held.unwrap_or(0)) {
                return Admission::New;
            }
            sensor.status.repeats += 1;
            Admission::Repeat
        })
        .unwrap_or(Admission::Superseded)
    }

    /// Judges batches of which each was [new](Self::preview), and counts them. Whoever hears `New` must pass them on without fail.
    ///
    /// Nothing else can have been accepted since the preview as long as the session speaks for the sensor.
    pub fn admit(&self, session: &Session, shipment: &Shipment) -> Admission {
        let Shipment { batch, batches, received, pairs, lone } = shipment;
        self.of(session, |sensor| {
            if batch.sequence <= sensor.accepted {
                sensor.status.repeats += batches;
                return Admission::Repeat;
            }
            let missing = (batch.sequence - sensor.accepted).saturating_sub(*batches);
            sensor.status.gaps = sensor.status.gaps.saturating_add(missing);
            sensor.accepted = batch.sequence;
            sensor.status.batches += batches;
            sensor.status.records += received;
            sensor.status.joined += pairs;
            sensor.status.lone_halves += lone;
            sensor.status.ledger = batch.ledger;
            Admission::New
        })
        .unwrap_or(Admission::Superseded)
    }

    /// Takes over a sensor's account.
    pub fn stats(&self, session: &Session, mut stats: Stats) {
        let sent = stats.ports.len();
        stats.ports.truncate(PORTS_MAX);
        for port in &mut stats.ports {
            port.interface = port.interface.chars().filter(|letter| !letter.is_control()).take(INTERFACE_LEN_MAX).collect();
        }
        self.of(session, |sensor| {
            sensor.status.ledger = stats.ledger;
            sensor.status.capture = stats.capture;
            sensor.status.accounts += 1;
            sensor.status.malformed += u64::from(sent > PORTS_MAX);
            sensor.status.ports = stats.ports;
        });
    }

    /// Shows each sensor's account: name, start, and what is known.
    pub fn each(&self, mut look: impl FnMut(&str, u64, &Status)) {
        self.lock().iter().for_each(|(name, sensor)| look(name, sensor.boot, &sensor.status));
    }

    /// Counts a message that made no sense.
    pub fn malformed(&self, session: &Session) {
        if let Some(sensor) = self.lock().get_mut(&session.sensor) {
            sensor.status.malformed += 1;
        }
    }

    /// A connection has ended.
    pub fn leave(&self, session: &Session) {
        self.of(session, |sensor| {
            sensor.session = None;
            sensor.status.connected = false;
        });
    }

    /// Everything up to `up_to` is durable: tells the connection.
    pub fn acknowledge(&self, name: &str, boot: u64, up_to: u64) {
        let mut sensors = self.lock();
        let Some(sensor) = sensors.get_mut(name).filter(|sensor| sensor.boot == boot) else { return };
        sensor.durable = sensor.durable.max(up_to);
        if let Some((_, sender)) = &sensor.session {
            sender.send_modify(|standing| standing.up_to = up_to.max(standing.up_to));
        }
    }

    /// Ends every session, after the last acknowledgement.
    pub fn close(&self) {
        for sensor in self.lock().values_mut() {
            sensor.dismiss(Fate::Closing);
        }
    }

    /// What was counted, by sensor.
    pub fn statuses(&self) -> Vec<(String, Status)> {
        self.lock().iter().map(|(name, sensor)| (name.clone(), sensor.status.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Sensor>> {
        self.sensors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the sensor if the session still speaks for it.
    fn of<T>(&self, session: &Session, deed: impl FnOnce(&mut Sensor) -> T) -> Option<T> {
        let mut sensors = self.lock();
        let sensor = sensors.get_mut(&session.sensor)?;
        let speaks = sensor.session.as_ref().is_some_and(|(number, _)| *number == session.number);
        speaks.then(|| deed(sensor))
    }
}

impl Sensor {
    fn dismiss(&mut self, fate: Fate) {
        if let Some((_, sender)) = self.session.take() {
            sender.send_modify(|standing| standing.fate = fate);
        }
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::wire::Batch;

    use super::*;

    fn batch(sequence: u64) -> Shipment {
        Batch { sensor: "plant1".to_owned(), boot: 5, sequence, ..Batch::default() }.into()
    }

    #[test]
    fn a_batch_counts_once_however_often_and_on_whichever_connection_it_comes() {
        let registry = Registry::default();
        let first = registry.welcome("plant1", 5, 2).unwrap();
        assert_eq!(first.resume_after, 2);
        assert_eq!(registry.admit(&first, &batch(2)), Admission::Repeat);
        assert_eq!(registry.admit(&first, &batch(3)), Admission::New);
        let second = registry.welcome("plant1", 5, 2).unwrap();
        assert_eq!(second.resume_after, 2, "3 is on its way, but not durable");
        assert_eq!(first.standing.borrow().fate, Fate::Superseded);
        assert_eq!(registry.admit(&first, &batch(4)), Admission::Superseded);
        assert_eq!(registry.admit(&second, &batch(3)), Admission::Repeat);
        assert_eq!(registry.admit(&second, &batch(4)), Admission::New);
        assert_eq!(registry.admit(&second, &batch(7)), Admission::New);
        registry.leave(&first);
        let (_, status) = registry.statuses().remove(0);
        assert!(status.connected, "the first connection's end says nothing about the second");
        assert_eq!((status.batches, status.repeats, status.gaps), (3, 2, 2));
    }

    #[test]
    fn batches_that_waited_for_each_other_count_as_what_they_were() {
        let registry = Registry::default();
        let session = registry.welcome("plant1", 5, 2).unwrap();
        let news = [2, 3, 5, 5, 6].map(|sequence| registry.preview(&session, sequence, (sequence >= 5).then_some(3)));
        assert_eq!(news, [Admission::Repeat, Admission::New, Admission::New, Admission::New, Admission::New]);
        assert_eq!(registry.preview(&session, 5, Some(5)), Admission::Repeat, "it waits already");
        let shipment = Shipment { batches: 3, received: 9, pairs: 4, lone: 1, ..batch(6) };
        assert_eq!(registry.admit(&session, &shipment), Admission::New);
        assert_eq!(registry.preview(&session, 6, None), Admission::Repeat);
        let (_, status) = registry.statuses().remove(0);
        assert_eq!((status.batches, status.gaps, status.repeats), (3, 1, 3), "4 never came");
        assert_eq!((status.records, status.joined, status.lone_halves), (9, 4, 1));
        registry.welcome("plant1", 5, 2).unwrap();
        assert_eq!(registry.preview(&session, 7, None), Admission::Superseded);
    }

    #[test]
    fn an_earlier_start_of_a_sensor_cannot_come_back() {
        let registry = Registry::default();
        let old = registry.welcome("plant1", 5, 0).unwrap();
        registry.welcome("plant1", 6, 0).unwrap();
        assert_eq!(registry.welcome("plant1", 5, 0).err(), Some(6));
        registry.acknowledge("plant1", 5, 9);
        assert_eq!(registry.durable("plant1", 6), Some(0));
        assert_eq!(registry.durable("plant1", 5), None);
        assert_eq!(registry.admit(&old, &batch(1)), Admission::Superseded);
    }

    #[test]
    fn an_acknowledgement_reaches_the_connection_that_speaks_now() {
        let registry = Registry::default();
        let session = registry.welcome("plant1", 5, 0).unwrap();
        registry.acknowledge("plant1", 5, 3);
        registry.acknowledge("plant1", 5, 2);
        assert_eq!(*session.standing.borrow(), Standing { up_to: 3, fate: Fate::Speak });
        registry.close();
        assert_eq!(*session.standing.borrow(), Standing { up_to: 3, fate: Fate::Closing });
    }

    #[test]
    fn an_account_is_held_with_as_many_ports_as_a_sensor_can_have() {
        let registry = Registry::default();
        let session = registry.welcome("plant1", 5, 0).unwrap();
        let port = |number| PortHealth { observation_point: number, interface: "x".repeat(1000), ..PortHealth::default() };
        registry.stats(&session, Stats { boot: 5, ports: (1..=65).map(port).collect(), ..Stats::default() });
        let (_, status) = registry.statuses().remove(0);
        assert_eq!((status.accounts, status.malformed, status.ports.len()), (1, 1, 64));
        assert!(status.ports.iter().all(|port| port.interface.len() == 64));
        registry.welcome("plant1", 6, 0).unwrap();
        registry.each(|_, boot, status| assert_eq!((boot, status.ports.len()), (6, 0), "a new start has said nothing yet"));
    }
}
