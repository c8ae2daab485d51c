use super::*;

/// `threads` hardware threads, numbered as Linux does: first one of each physical core, then the second ones. Nodes and caches
/// hold equal runs of physical cores.
fn machine(physical: usize, threads_each: usize, nodes: usize, caches: usize) -> Topology {
    let core = |number: usize| {
        let on = number % physical;
        Core { number, physical: on, cache: on * caches / physical, node: on * nodes / physical }
    };
    let cores: Vec<Core> = (0..physical * threads_each).map(core).collect();
    let allowed = cores.iter().map(|core| core.number).collect();
    Topology { cores, allowed }
}

/// Queues of one port whose interrupts, from 100 on, arrive on these cores.
fn interrupted(at: &[&[usize]]) -> Vec<Queue> {
    let queue = |(number, cores): (usize, &&[usize])| {
        let napi = Napi::Interrupt { number: 100 + number as u32, cores: cores.to_vec() };
        Queue { port: "eno2".into(), number, channels: "combined", napi, node: None }
    };
    at.iter().enumerate().map(queue).collect()
}

fn unknown(queues: usize) -> Vec<Queue> {
    (0..queues).map(|number| Queue { port: "veth0".into(), number, ..Queue::default() }).collect()
}

#[track_caller]
fn check(topology: &Topology, queues: &[Queue], workers: &[usize], others: &[usize]) -> Plan {
    let plan = plan(topology, queues, &Cores::Auto).expect("auto fits every machine");
    let cores: Vec<_> = plan.workers.iter().map(|place| place.core.expect("a core")).collect();
    assert_eq!((cores.as_slice(), plan.others.as_slice()), (workers, others));
    plan
}

#[test]
fn a_machine_with_one_core_is_shared_and_the_trouble_said() {
    let one = machine(1, 1, 1, 1);
    let queues = interrupted(&[&[0]]);
    let plan = check(&one, &queues, &[0], &[0]);
    assert!(plan.workers[0].has_own_napi);
    assert_eq!(plan.troubles(&one, &queues)[0].1, "give the machine a second core");
}

#[test]
fn on_two_cores_the_worker_takes_the_one_without_the_interrupt() {
    let two = machine(2, 1, 1, 1);
    check(&two, &interrupted(&[&[0]]), &[1], &[0]);
    let plan = check(&two, &interrupted(&[&[1]]), &[0], &[1]);
    assert_eq!(plan.troubles(&two, &[]), []);
    // Two queues on one core: better two workers together on the other than one with the interrupts.
    let queues = interrupted(&[&[0], &[0]]);
    let plan = check(&two, &queues, &[1, 1], &[0]);
    let shared = ("2 workers share core 1, and lose packets in bursts", "use fewer queues: ethtool -L eno2 combined 1");
    assert_eq!(plan.troubles(&two, &queues), [(shared.0.to_owned(), shared.1.to_owned())]);
    // An interrupt on each: not on its own.
    let plan = check(&two, &interrupted(&[&[0], &[1]]), &[1, 0], &[0, 1]);
    assert!(plan.workers.iter().all(|place| place.has_other_napi && !place.has_own_napi));
}

#[test]
fn a_virtual_interface_leaves_the_first_core_to_the_rest() {
    check(&machine(2, 1, 1, 1), &unknown(1), &[1], &[0]);
    check(&machine(4, 1, 1, 1), &unknown(2), &[3, 2], &[0, 1]);
    // An interrupt that may arrive anywhere says as little.
    check(&machine(2, 1, 1, 1), &interrupted(&[&[0, 1]]), &[1], &[0]);
}

#[test]
fn workers_keep_off_the_twin_of_a_busy_core() {
    // Eight threads on four cores: 0 and 4 are twins, and so on. Interrupts on 0 and 1 leave the cores 2 and 3.
    check(&machine(4, 2, 1, 1), &interrupted(&[&[0], &[1]]), &[7, 6], &[4, 5]);
}

#[test]
fn workers_stay_on_the_node_and_the_cache_of_their_interrupt() {
    // Two nodes of four cores; 0-3 and 4-7.
    check(&machine(8, 1, 2, 2), &interrupted(&[&[0], &[4]]), &[3, 7], &[1, 2, 5, 6]);
    // One node, two caches.
    check(&machine(8, 1, 1, 2), &interrupted(&[&[5]]), &[7], &[0, 1, 2, 3, 4, 6]);
    // The card's node is known, its interrupts are not.
    let mut queues = unknown(2);
    queues.iter_mut().for_each(|queue| queue.node = Some(0));
    check(&machine(8, 1, 2, 2), &queues, &[3, 2], &[0, 1, 4, 5, 6, 7]);
    // The own node is full of interrupts: the other is better than sharing.
    check(&machine(4, 1, 2, 2), &interrupted(&[&[0], &[1]]), &[3, 2], &[0, 1]);
}

#[test]
fn more_queues_than_cores_are_dealt_out_evenly() {
    let four = machine(4, 1, 1, 1);
    let plan = check(&four, &unknown(6), &[3, 2, 1, 0, 3, 2], &[0, 1, 2, 3]);
    assert_eq!(plan.workers.iter().filter(|place| place.has_other_worker).count(), 4);
    // All four cores take interrupts: each worker sits with another's.
    let plan = check(&four, &interrupted(&[&[0], &[1], &[2], &[3]]), &[3, 2, 1, 0], &[0, 1, 2, 3]);
    assert!(plan.workers.iter().all(|place| !place.has_own_napi));
}

#[test]
fn only_cores_that_the_process_may_use_are_planned_for() {
    let eight = Topology { allowed: vec![2, 3], ..machine(8, 1, 1, 1) };
    check(&eight, &interrupted(&[&[3]]), &[2], &[3]);
}

#[test]
fn a_list_is_followed_in_turn_and_its_mistakes_are_said() {
    let four = machine(4, 1, 1, 1);
    let queues = interrupted(&[&[2], &[0], &[0]]);
    let listed = plan(&four, &queues, &Cores::These(vec![2, 3])).expect("both are there");
    assert_eq!(listed.workers.iter().map(|place| place.core).collect::<Vec<_>>(), [Some(2), Some(3), Some(2)]);
    let troubles = listed.troubles(&four, &queues);
    assert_eq!(troubles[0].1, "echo 0 > /proc/irq/100/smp_affinity_list (and stop irqbalance, or it moves back)");
    assert_eq!(
        plan(&four, &queues, &Cores::These(vec![4])),
        Err("this machine has no core 4; name cores from 0 to 3, or write \"auto\"".to_owned())
    );
    let free = plan(&four, &queues, &Cores::Any).expect("nothing to go wrong");
    assert_eq!((free.workers[0].core, free.others.len(), free.troubles(&four, &queues)), (None, 0, vec![]));
}
