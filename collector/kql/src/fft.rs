//! The discrete Fourier transform, of any length, in O(n log n).
//!
//! Our own, because the usual library asks more features of the number crates that the query engine stands on, which then has to
//! be compiled anew.

use std::f64::consts::PI;
use std::ops::{Add, Mul, Sub};

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Complex {
    pub(crate) re: f64,
    pub(crate) im: f64,
}

impl Complex {
    pub(crate) fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub(crate) fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    /// The square of its distance from 0.
    pub(crate) fn norm_sqr(self) -> f64 {
        self.re * self.re + self.im * self.im
    }

    /// exp(−πi `halves`): the point after so many half turns, clockwise.
    fn turned(halves: f64) -> Self {
        let (sin, cos) = (-PI * halves).sin_cos();
        Self { re: cos, im: sin }
    }
}

impl Add for Complex {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Mul for Complex {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

/// A transform of one length, prepared to be applied often.
pub(crate) enum Fft {
    /// For a power of two, by halving (Cooley and Tukey).
    Halving(Halving),
    /// For any other length: a convolution with a chirp (Bluestein), which a power of two can do.
    Chirp {
        /// Of at least twice the length.
        halving: Halving,
        /// exp(−πi k² / n) for each k.
        chirp: Vec<Complex>,
        /// The transform of its conjugate, both ways around, divided by the length of `halving`.
        response: Vec<Complex>,
        room: Vec<Complex>,
    },
}

impl Fft {
    /// For `n` points; at least one.
    pub(crate) fn new(n: usize) -> Self {
        if n.is_power_of_two() {
            return Self::Halving(Halving::new(n));
        }
        let halving = Halving::new((2 * n).next_power_of_two());
        // k² modulo 2n, so that the angle stays exact for large k.
        let angle = |k: usize| ((k as u128 * k as u128) % (2 * n as u128)) as f64 / n as f64;
        let chirp: Vec<Complex> = (0..n).map(|k| Complex::turned(angle(k))).collect();
        let size = halving.size();
        let mut response = vec![Complex::default(); size];
        for (k, value) in chirp.iter().enumerate() {
            let value = Complex { re: value.re / size as f64, im: -value.im / size as f64 };
            response[k] = value;
            response[(size - k) % size] = value;
        }
        halving.apply(&mut response);
        Self::Chirp { halving, chirp, response, room: vec![Complex::default(); size] }
    }

    /// Puts Σⱼ xⱼ exp(−2πi jk/n) in the place of each xₖ.
    pub(crate) fn apply(&mut self, points: &mut [Complex]) {
        match self {
            Self::Halving(halving) => halving.apply(points),
            Self::Chirp { halving, chirp, response, room } => {
                room.fill(Complex::default());
                for ((cell, &point), &turn) in room.iter_mut().zip(&*points).zip(&*chirp) {
                    *cell = point * turn;
                }
                halving.apply(room);
                for (cell, &factor) in room.iter_mut().zip(&*response) {
                    // The inverse transform is the transform of the conjugate.
                    *cell = (*cell * factor).conj();
                }
                halving.apply(room);
                for ((point, cell), &turn) in points.iter_mut().zip(room).zip(&*chirp) {
                    *point = cell.conj() * turn;
                }
            }
        }
    }
}

/// The transform of a power of two.
pub(crate) struct Halving {
    /// exp(−2πi k / n) for the first half of the circle.
    turns: Vec<Complex>,
    bits: u32,
}

impl Halving {
    fn new(n: usize) -> Self {
        let turns = (0..n / 2).map(|k| Complex::turned(2.0 * k as f64 / n as f64)).collect();
        Self { turns, bits: n.trailing_zeros() }
    }

    fn size(&self) -> usize {
        1 << self.bits
    }

    fn apply(&self, points: &mut [Complex]) {
        let n = self.size();
        if n < 2 {
            return;
        }
        for index in 0..n {
            let mirrored = index.reverse_bits() >> (usize::BITS - self.bits);
            if index < mirrored {
                points.swap(index, mirrored);
            }
        }
        let mut half = 1;
        while half < n {
            let stride = n / (2 * half);
            for block in points.chunks_exact_mut(2 * half) {
                let (evens, odds) = block.split_at_mut(half);
                for ((even, odd), &turn) in evens.iter_mut().zip(odds).zip(self.turns.iter().step_by(stride)) {
                    let turned = *odd * turn;
                    (*even, *odd) = (*even + turned, *even - turned);
                }
            }
            half *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_agrees_with_the_definition() {
        for n in (1..=40).chain([64, 97, 336]) {
            let points: Vec<Complex> =
                (0..n).map(|k| Complex { re: ((k * k * 7 + 3) % 11) as f64, im: ((k * 5 + 1) % 7) as f64 }).collect();
            let mut fast = points.clone();
            Fft::new(n).apply(&mut fast);
            for (k, got) in fast.iter().enumerate() {
                let turn = |j: usize| Complex::turned(2.0 * ((j * k) % n) as f64 / n as f64);
                let slow = points.iter().enumerate().fold(Complex::default(), |sum, (j, &point)| sum + point * turn(j));
                assert!((*got - slow).norm_sqr().sqrt() < 1e-9 * n as f64, "{n} points, frequency {k}");
            }
        }
    }
}
