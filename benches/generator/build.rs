//! Compiles bpf/generator.bpf.c with clang and writes the Rust skeleton of it to OUT_DIR.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use libbpf_cargo::SkeletonBuilder;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let Some(clang) = find_clang() else {
        eprintln!(
            "clang is missing, and the generator's XDP programs are compiled with it: apt-get install clang (or set CLANG to its path)"
        );
        return ExitCode::FAILURE;
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("generator.skel.rs");
    let built = SkeletonBuilder::new()
        .source("bpf/generator.bpf.c")
        .clang(clang)
        .clang_args(["-mcpu=v3", "-Wall", "-Werror"])
        .build_and_generate(&out);
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bpf/generator.bpf.c does not compile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `CLANG`, else the first of the usual names that runs.
fn find_clang() -> Option<String> {
    let named = env::var("CLANG").ok();
    let usual = ["clang", "clang-20", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"];
    let mut names: Box<dyn Iterator<Item = String>> = match named {
        Some(name) => Box::new([name].into_iter()),
        None => Box::new(usual.into_iter().map(String::from)),
    };
    names.find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}
