//! Paths of leaves: each named module opens a scope, and names within a scope are unique.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::memory;

/// The most bytes of all paths together: names nested in names make paths whose length grows with the square of their number.
const MAX_BYTES: usize = 1 << 28;

/// The scopes so far, each with the names that are taken in it.
#[derive(Debug)]
pub(crate) struct Paths {
    scopes: Vec<Scope>,
    /// The bytes of the paths so far.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Scope {
    /// The scope around this one, and the name there.
    place: Option<(usize, String)>,
    // For each name that was asked for, the next number to append if it is asked for again.
    given: HashMap<String, usize>,
}

impl Scope {
    /// Whether a name was asked for, or made by appending a number to one that was.
    fn takes(&self, name: &str) -> bool {
        let made = || {
            let (base, number) = name.rsplit_once('_')?;
            let next = *self.given.get(base)?;
            let written: usize = number.parse().ok()?;
            Some((1..next).contains(&written) && number == written.to_string())
        };
        self.given.contains_key(name) || made().unwrap_or(false)
    }
}

impl Default for Paths {
    fn default() -> Self {
        Paths { scopes: vec![Scope::default()], bytes: 0 }
    }
}

impl Paths {
    /// Opens a scope called `name` inside scope `parent` and returns its index.
    pub fn enter(&mut self, parent: usize, name: &str) -> usize {
        let place = Some((parent, self.unique(parent, name)));
        self.scopes.push(Scope { place, ..Scope::default() });
        self.scopes.len() - 1
    }

    /// The name of a scope, with the names of at most two scopes around it: paths in messages stay short.
    pub fn short(&self, scope: usize) -> String {
        let mut names: Vec<&str> = self.around(scope).take(3).map(|(_, name)| name.as_str()).collect();
        names.reverse();
        names.join("/")
    }

    /// The scopes around a place, from the inside out, each with its name.
    fn around(&self, scope: usize) -> impl Iterator<Item = &(usize, String)> {
        std::iter::successors(self.scopes[scope].place.as_ref(), |(parent, _)| self.scopes[*parent].place.as_ref())
    }

    /// The path of a leaf: its own name, or its kind in lower case.
    pub fn leaf(&mut self, scope: usize, name: Option<&str>, kind: &str) -> Result<String> {
        let own = match name {
            Some(name) => self.unique(scope, name),
            // The name of a user's class may hold what parts a path.
            None => self.unique(scope, &kind.to_lowercase().replace('/', "_")),
        };
        let length = self.around(scope).fold(own.len(), |length, (_, name)| length + name.len() + 1);
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > MAX_BYTES {
            let what = "the list of the paths of all leaves, in bytes,".into();
            return Err(Error::TooLarge { what, count: self.bytes as u64, limit: MAX_BYTES as u64 });
        }
        let mut names = memory::collected(self.around(scope).map(|(_, name)| name.as_str()));
        names.reverse();
        names.push(&own);
        memory::expect(2 * length);
        Ok(names.join("/"))
    }

    /// The name in `scope` that `name` gets. One that is taken gets the suffix `_1`, then `_2`, and so on.
    fn unique(&mut self, scope: usize, name: &str) -> String {
        let scope = &mut self.scopes[scope];
        let mut candidate = name.to_owned();
        let mut number = scope.given.get(name).copied().unwrap_or(1);
        while scope.takes(&candidate) {
            candidate = format!("{name}_{number}");
            number += 1;
        }
        match scope.given.get_mut(name) {
            Some(next) => *next = number,
            None => drop(scope.given.insert(name.to_owned(), number)),
        }
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_are_numbered_and_never_collide() {
        let mut paths = Paths::default();
        let scope = paths.enter(0, "blocks");
        assert_eq!(paths.leaf(scope, None, "Linear").unwrap(), "blocks/linear");
        assert_eq!(paths.leaf(scope, Some("linear_1"), "Linear").unwrap(), "blocks/linear_1");
        assert_eq!(paths.leaf(scope, None, "Linear").unwrap(), "blocks/linear_2");
        assert_eq!(paths.leaf(scope, Some("linear_2"), "Linear").unwrap(), "blocks/linear_2_1");
        assert_eq!(paths.leaf(scope, Some("linear_2"), "Linear").unwrap(), "blocks/linear_2_2");
        assert_eq!(paths.leaf(scope, Some("linear_03"), "Linear").unwrap(), "blocks/linear_03");
        assert_eq!(paths.leaf(scope, None, "Linear").unwrap(), "blocks/linear_3");
        assert_eq!(paths.leaf(0, None, "Linear").unwrap(), "linear");
        assert_eq!(paths.enter(0, "blocks"), 2);
        assert_eq!(paths.leaf(2, Some("q"), "Linear").unwrap(), "blocks_1/q");
    }
}
