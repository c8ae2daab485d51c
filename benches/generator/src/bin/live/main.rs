//! The sensor against line rate.

fn main() {}
