//! How many files of a tree that is read through are fetched at the same time, where servers answer at once: as many as
//! there are lanes while the reader waits for them, and fewer while he finds all of them. More would merely take the
//! processors away from him, to lie idle when everything in sight has been fetched.

/// Files that are fetched at the same time, at least.
const LEAST: usize = 2;
/// After so many that were found, one less is fetched at the same time.
const CALM: usize = 8;

/// A pure value.
#[derive(Debug)]
pub struct Eagerness {
    most: usize,
    now: usize,
    found: usize,
}

impl Eagerness {
    /// At most so many.
    pub fn new(most: usize) -> Eagerness {
        Eagerness { most, now: most, found: 0 }
    }

    /// Files to fetch at the same time.
    pub fn files(&self) -> usize {
        self.now
    }

    /// Somebody begins to read a tree.
    pub fn begins(&mut self) {
        *self = Eagerness::new(self.most);
    }

    /// The reader waits for a file.
    pub fn waited(&mut self) {
        (self.now, self.found) = ((self.now + 1).min(self.most), 0);
    }

    /// He did not have to.
    pub fn found(&mut self) {
        self.found += 1;
        if self.found >= CALM {
            (self.now, self.found) = ((self.now - 1).max(LEAST.min(self.most)), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_slowly_and_rises_quickly() {
        let mut eagerness = Eagerness::new(12);
        (0..CALM - 1).for_each(|_| eagerness.found());
        assert_eq!(eagerness.files(), 12);
        eagerness.found();
        assert_eq!(eagerness.files(), 11);
        (0..20 * CALM).for_each(|_| eagerness.found());
        assert_eq!(eagerness.files(), LEAST);
        let risen: Vec<usize> = std::iter::repeat_with(|| (eagerness.waited(), eagerness.files()).1).take(4).collect();
        assert_eq!(risen, [3, 4, 5, 6]);
        (0..20).for_each(|_| eagerness.waited());
        assert_eq!(eagerness.files(), 12);
        (0..20 * CALM).for_each(|_| eagerness.found());
        eagerness.begins();
        assert_eq!(eagerness.files(), 12);
    }

    #[test]
    fn who_has_one_lane_uses_it() {
        let mut eagerness = Eagerness::new(1);
        (0..2 * CALM).for_each(|_| eagerness.found());
        assert_eq!(eagerness.files(), 1);
        eagerness.waited();
        assert_eq!(eagerness.files(), 1);
    }
}
