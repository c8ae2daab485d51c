//! Numbered places of one kind, taken when something needs one and given back. There are as many as there may be flows, so the pool
//! is never empty; memory is touched only up to the most that were ever in use at once.

use bytemuck::Pod;

use super::memory::Slots;

/// The pool. Number 0 stands for no place.
pub(super) struct Pool<T> {
    slots: Slots<T>,
    /// The last place given back; its first four bytes have the number of the one given back before it.
    free: u32,
    /// How many were ever in use.
    touched: u32,
}

impl<T: Pod> Pool<T> {
    /// A pool of `places`, at most 2³² − 1.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub(super) fn new(places: usize) -> std::io::Result<Self> {
        Ok(Self { slots: Slots::new(places)?, free: 0, touched: 0 })
    }

    /// Takes a place for `value`; gives its number.
    pub(super) fn put(&mut self, value: T) -> u32 {
        let number = if self.free == 0 {
            self.touched += 1;
            self.touched
        } else {
            let number = self.free;
            self.free = bytemuck::pod_read_unaligned(&bytemuck::bytes_of(self.get(number))[..4]);
            number
        };
        *self.get_mut(number) = value;
        number
    }

    /// Gives a place back, which must be taken.
    pub(super) fn give_back(&mut self, number: u32) {
        let free = self.free.to_ne_bytes();
        bytemuck::bytes_of_mut(self.get_mut(number))[..4].copy_from_slice(&free);
        self.free = number;
    }

    /// What stands at a number, which must be taken.
    pub(super) fn get(&self, number: u32) -> &T {
        &self.slots.as_slice()[number as usize - 1]
    }

    /// See [`get`](Self::get).
    pub(super) fn get_mut(&mut self, number: u32) -> &mut T {
        &mut self.slots.as_mut_slice()[number as usize - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_given_back_is_the_next_one_taken_and_the_others_stay() {
        let mut pool = Pool::<[u32; 3]>::new(4).expect("a little memory");
        let numbers: Vec<u32> = (0..4).map(|n| pool.put([n; 3])).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        pool.give_back(2);
        pool.give_back(4);
        assert_eq!([pool.put([7; 3]), pool.put([8; 3])], [4, 2]);
        assert_eq!([1, 2, 3, 4].map(|number| pool.get(number)[2]), [0, 8, 2, 7]);
    }
}
