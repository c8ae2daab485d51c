//! Any bytes, cut into frames: the first byte of each says how long it is.
//!
//! One line takes a hundred inputs, so that its tables are full of what came before; a crash may need those, too.
#![no_main]

#[path = "../../support/robust.rs"]
mod robust;

use std::cell::RefCell;

/// Inputs that one line takes.
const INPUTS: u32 = 100;

thread_local! {
    static LINE: RefCell<Option<(robust::Line, u32)>> = const { RefCell::new(None) };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    LINE.with_borrow_mut(|held| {
        let (mut line, inputs) = held.take().unwrap_or_else(|| (robust::Line::new(), 0));
        let mut rest = bytes;
        while let [length, body @ ..] = rest {
            let (frame, after) = body.split_at(body.len().min(usize::from(*length)));
            line.take(frame, 0);
            rest = after;
        }
        line.check();
        if inputs + 1 < INPUTS {
            *held = Some((line, inputs + 1));
        } else {
            line.finish();
        }
    });
});
