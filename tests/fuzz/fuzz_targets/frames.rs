//! Any bytes, cut into frames: the first byte of each says how long it is.
#![no_main]

#[path = "../../support/robust.rs"]
mod robust;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut line = robust::Line::new();
    let mut rest = bytes;
    while let [length, body @ ..] = rest {
        let (frame, after) = body.split_at(body.len().min(usize::from(*length)));
        line.take(frame, 0);
        rest = after;
    }
    line.finish();
});
