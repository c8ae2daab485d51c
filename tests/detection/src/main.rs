//! `detection`: traffic with truth, and how well the rules do on it.

fn main() {}
