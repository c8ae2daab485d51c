//! Minutes of a mirror port, and what a person hears of them.

use super::*;
use crate::alert::{Alert, AlertBook, AlertState, Class};

const START: i64 = 1_795_255_200;

/// A sensor with one port, the watch that looks at it, and the alerts that come of it.
struct Plant {
    watch: HealthWatch,
    book: AlertBook,
    boot: u64,
    received: u64,
    health: Health,
    connected: bool,
    now: Timestamp,
    alerts: Vec<Alert>,
}

impl Plant {
    fn new() -> Self {
        Self {
            watch: HealthWatch::new(&HealthSettings::default()),
            book: AlertBook::new(Class::Health, 100),
            boot: 1,
            received: 0,
            health: Health::default(),
            connected: true,
            now: Timestamp::from_secs(START),
            alerts: Vec::new(),
        }
    }

    /// Ten seconds in which the sensor counts `more`, and says so.
    fn account(&mut self, more: &Health) {
        self.health.add(more);
        self.received += 1;
        self.wait(10);
    }

    /// Seconds in which nothing comes.
    fn wait(&mut self, secs: u64) {
        let ports = [PortHealth { observation_point: 1, interface: "eno2".to_owned(), health: self.health }];
        for _ in 0..secs {
            self.now = self.now.plus(Duration::from_secs(1));
            let account = Account { boot: self.boot, connected: self.connected, received: self.received, ports: &ports };
            self.look("plant1", account);
        }
    }

    fn look(&mut self, sensor: &str, account: Account<'_>) {
        self.watch.take(sensor, account, self.now);
        for verdict in self.watch.poll(self.now) {
            match verdict {
                Verdict::Found(finding) => self.book.take(&finding, self.now, &mut self.alerts),
                Verdict::Over(rule, subject) => self.book.close(&rule, &subject, self.now, &mut self.alerts),
            }
        }
        self.book.expire(self.now, self.now, &mut self.alerts);
    }

    /// `minutes` in which every ten seconds count `more`; what was told in them.
    fn minutes(&mut self, minutes: u32, more: &Health) -> Vec<(AlertState, String)> {
        (0..minutes * 6).for_each(|_| self.account(more));
        self.told()
    }

    fn told(&mut self) -> Vec<(AlertState, String)> {
        self.alerts.drain(..).map(|alert| (alert.state, alert.rule)).collect()
    }
}

fn well() -> Health {
    Health { packets: 1_000, examined: 1_000, ..Health::default() }
}

/// So many packets of a hundred come twice.
fn copies(percent: u64) -> Health {
    Health { duplicate_copy: percent * 10, ..well() }
}

fn is(state: AlertState, rule: &str) -> (AlertState, String) {
    (state, rule.to_owned())
}

#[test]
fn a_port_that_shows_everything_twice_is_one_alert_until_it_was_well_for_five_minutes() {
    let mut plant = Plant::new();
    plant.account(&well()); // the first look only says where counting begins
    assert_eq!(plant.minutes(1, &copies(20)), [is(AlertState::Open, "SPAN-DUPLICATES")]);
    let open = plant.book.alerts().next().unwrap().clone();
    assert_eq!((open.class, open.severity, &*open.subject), (Class::Health, Severity::Low, "eno2 at plant1"));
    assert_eq!(
        open.sentence,
        "eno2 at plant1: 20 % of 6,000 packets compared came twice (1,200 identical); flows count both copies."
    );
    assert!(open.advice.starts_with("Mirror one direction only"), "{}", open.advice);
    assert_eq!((open.evidence.value, open.evidence.threshold, open.score), (20.0, 5.0, 4.0));

    assert_eq!(plant.minutes(5, &copies(60)), [], "not another scale");
    assert_eq!(plant.minutes(1, &copies(64)), [is(AlertState::Updated, "SPAN-DUPLICATES")]);
    for _ in 0..10 {
        assert_eq!(plant.minutes(4, &well()), [], "now good ...");
        assert_eq!(plant.minutes(1, &copies(20)), [], "... now bad");
    }
    assert_eq!(plant.minutes(4, &well()), []);
    assert_eq!(plant.minutes(1, &well()), [is(AlertState::Closed, "SPAN-DUPLICATES")]);
    assert_eq!(plant.minutes(10, &well()), []);
    assert_eq!(plant.minutes(1, &copies(20)), [is(AlertState::Open, "SPAN-DUPLICATES")]);
    let again = plant.book.alerts().next().unwrap();
    assert_eq!((&again.id, again.reopened, again.evidence.value), (&open.id, 1, 20.0), "as it is now, not as it was");
}

#[test]
fn what_a_port_did_not_see_makes_findings_doubtful_for_as_long() {
    let mut plant = Plant::new();
    let mut conditions = Conditions::default();
    let mut known = |plant: &mut Plant| {
        plant.watch.conditions(&mut conditions);
        conditions
            .all()
            .map(|held| (held.weakness, held.share, held.from.as_nanos() / 1_000_000_000 - START, held.until))
            .collect::<Vec<_>>()
    };
    plant.account(&well());
    let start = |plant: &Plant| plant.now.as_nanos() / 1_000_000_000 - START;
    plant.minutes(1, &Health { dropped: 1, ..well() });
    assert_eq!(known(&mut plant), [], "one in a thousand is the least that counts, and this is one in 1001");
    let lossy_from = start(&plant) - 1;
    plant.minutes(2, &Health { dropped: 250, tcp_flows: 100, tcp_flows_one_way: 21, ..well() });
    let held = known(&mut plant);
    let shares: Vec<(Weakness, f64)> = held.iter().map(|held| (held.0, held.1)).collect();
    assert_eq!(shares, [(Weakness::Loss, 0.2), (Weakness::OneSided, 0.21)]);
    assert!(held.iter().all(|held| held.2 - lossy_from <= 10 && held.3 > plant.now), "{held:?}");
    let sound_from = plant.now;
    plant.minutes(2, &well());
    let held = known(&mut plant);
    assert_eq!(held.len(), 2, "what was does not become untrue");
    assert!(held.iter().all(|held| held.3 <= sound_from), "{held:?}");
}

#[test]
fn a_sensor_that_started_a_moment_ago_is_young_for_ten_minutes_and_a_restarted_collector_makes_none_so() {
    let young = |boot: i64| {
        let mut plant = Plant { boot: Timestamp::from_secs(START + boot).as_nanos().cast_unsigned(), ..Plant::new() };
        plant.account(&well());
        let mut conditions = Conditions::default();
        plant.watch.conditions(&mut conditions);
        conditions.all().map(|held| (held.weakness, held.until)).collect::<Vec<_>>()
    };
    assert_eq!(young(-60), [(Weakness::Young, Timestamp::from_secs(START + 540))]);
    assert_eq!(young(-700), []);
}

#[test]
fn overload_of_one_fibre_is_told_of_that_fibre_and_is_over_with_it() {
    let mut plant = Plant::new();
    let mut looks = |count: u32, more: &Health| {
        for _ in 0..count {
            plant.health.add(more);
            // The sensor says how it samples now, not how it did.
            plant.health.keep_one_in = more.keep_one_in;
            plant.received += 1;
            let port = |observation_point, interface: &str, health| PortHealth {
                observation_point,
                interface: interface.to_owned(),
                health,
            };
            let calm = Health { packets: plant.health.packets, ..Health::default() };
            let ports = [port(1, "eno2", calm), port(2, "eno3", plant.health)];
            plant.now = plant.now.plus(Duration::from_secs(10));
            plant.look("tap", Account { boot: 1, connected: true, received: plant.received, ports: &ports });
        }
        let told: Vec<String> =
            plant.alerts.drain(..).map(|alert| format!("{:?} {} {}", alert.state, alert.rule, alert.subject)).collect();
        told
    };
    assert_eq!(looks(1 + 6, &well()), Vec::<String>::new());
    let full = Health { evicted: 90, in_aggregate: 210, ..well() };
    assert_eq!(looks(6, &full), ["Open SPAN-TABLE-FULL eno3 at tap"]);
    let sampling = Health { keep_one_in: 4, shed: 3_000, dropped: 3_000, ..full };
    assert_eq!(looks(6, &sampling), ["Open SPAN-SAMPLED eno3 at tap"]);
    let over = Health { keep_one_in: 1, ..well() };
    assert_eq!(looks(4 * 6, &over), Vec::<String>::new());
    assert_eq!(looks(6, &over), ["Closed SPAN-SAMPLED eno3 at tap", "Closed SPAN-TABLE-FULL eno3 at tap"]);
    let alert = plant.book.alerts().find(|alert| alert.rule == "SPAN-SAMPLED").unwrap();
    assert_eq!((alert.severity, alert.evidence.value, alert.score), (Severity::Medium, 75.0, 75.0));
}

#[test]
fn an_alert_that_lasts_is_told_again_every_hour_and_each_symptom_has_its_own() {
    let mut plant = Plant::new();
    plant.account(&well());
    let both = Health { sliced: 1_000, ..copies(20) };
    let mut told = plant.minutes(120, &both);
    told.sort();
    let updates = told.iter().filter(|(state, _)| *state == AlertState::Updated).count();
    assert_eq!(told[..2], [is(AlertState::Open, "SPAN-DUPLICATES"), is(AlertState::Open, "SPAN-SLICED")]);
    assert_eq!((told.len(), updates), (4, 2), "{told:?}");
}

#[test]
fn a_restarted_collector_goes_on_with_the_alert_and_does_not_tell_it_again() {
    let mut plant = Plant::new();
    plant.account(&well());
    plant.minutes(2, &copies(20));
    let lines: Vec<Alert> = plant.book.alerts().cloned().collect();
    plant.watch = HealthWatch::new(&HealthSettings::default());
    plant.book = AlertBook::new(Class::Health, 100);
    plant.book.restore(lines.clone());
    plant.now = plant.now.plus(Duration::from_secs(3_000));
    assert_eq!(plant.minutes(3, &copies(20)), []);
    assert_eq!(plant.minutes(6, &well()), [is(AlertState::Closed, "SPAN-DUPLICATES")]);
    assert_eq!(plant.book.alerts().next().unwrap().id, lines[0].id);

    let mut detections = AlertBook::new(Class::Detection, 100);
    detections.restore(lines);
    assert_eq!(detections.alerts().count(), 0, "these are none of the detectors'");
}

#[test]
fn a_restarted_sensor_is_judged_from_its_restart_on() {
    let mut plant = Plant::new();
    plant.minutes(2, &well());
    plant.boot = 2;
    plant.health = Health { packets: 500_000, examined: 500_000, duplicate_copy: 400_000, ..Health::default() };
    assert_eq!(plant.minutes(3, &well()), [], "what was counted before anybody looked says nothing");
    plant.health = Health::default();
    assert_eq!(plant.minutes(1, &well()), [], "counters that went back are no minute without packets");
    assert_eq!(plant.minutes(2, &copies(20)), [is(AlertState::Open, "SPAN-DUPLICATES")]);
}

#[test]
fn a_port_without_traffic_and_a_sensor_without_words_are_told_and_a_sensor_that_is_gone_is_not() {
    let mut plant = Plant::new();
    plant.minutes(2, &well());
    assert_eq!(plant.minutes(3, &Health::default()), [is(AlertState::Open, "SPAN-NO-TRAFFIC")]);
    let alert = plant.book.alerts().next().unwrap();
    assert_eq!(alert.severity, Severity::High);
    assert_eq!(alert.sentence, "eno2 at plant1: Not one packet came in 60 s.");

    plant.wait(119);
    assert_eq!(plant.told(), []);
    plant.wait(70);
    assert_eq!(plant.told(), [is(AlertState::Open, "SPAN-NO-ACCOUNT")], "once, and nothing of a port that nobody sees");
    let mut told = plant.minutes(6, &well());
    told.sort();
    assert_eq!(told, [is(AlertState::Closed, "SPAN-NO-ACCOUNT"), is(AlertState::Closed, "SPAN-NO-TRAFFIC")]);

    plant.minutes(2, &Health::default());
    assert_eq!(plant.book.open_count(), 1);
    plant.connected = false;
    plant.alerts.clear();
    plant.wait(3_600);
    assert_eq!(plant.told(), [], "the mirror may be as bad as it was");
    plant.wait(86_400);
    assert_eq!(plant.told(), [is(AlertState::Closed, "SPAN-NO-TRAFFIC")], "nobody can tell any more");
}

#[test]
fn a_sensor_too_old_to_count_is_told_to_be_upgraded_and_ports_are_told_apart() {
    let mut plant = Plant::new();
    for _ in 0..130 {
        plant.now = plant.now.plus(Duration::from_secs(1));
        plant.received += 1;
        plant.look("old", Account { boot: 9, connected: true, received: plant.received, ports: &[] });
    }
    assert_eq!(plant.told(), [is(AlertState::Open, "SPAN-NO-ACCOUNT")]);
    let alert = plant.book.alerts().next().unwrap();
    assert_eq!((&*alert.subject, &*alert.advice), ("at old", "Upgrade the sensor; its records are taken all the same."));

    let (mut first, mut second) = (Health::default(), Health::default());
    for _ in 0..8 {
        plant.now = plant.now.plus(Duration::from_secs(10));
        plant.received += 1;
        first.add(&well());
        second.add(&copies(50));
        let port = |observation_point, interface: &str, health| PortHealth {
            observation_point,
            interface: interface.to_owned(),
            health,
        };
        let ports = [port(1, "eno2", first), port(2, "", second)];
        plant.look("new", Account { boot: 9, connected: true, received: plant.received, ports: &ports });
    }
    assert_eq!(plant.told(), [is(AlertState::Open, "SPAN-DUPLICATES")]);
    let present: Vec<(&str, bool)> = plant.watch.symptoms().map(|(_, port, present)| (port, present.contains(&true))).collect();
    assert_eq!(present, [("eno2", false), ("port 2", true)]);
}
