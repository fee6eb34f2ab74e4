//! Paths of leaves: each named module opens a scope, and names within a scope are unique.

use std::collections::HashMap;

/// The scopes so far, each with the names that are taken in it.
#[derive(Debug)]
pub(crate) struct Paths {
    scopes: Vec<Scope>,
}

#[derive(Debug, Default)]
struct Scope {
    prefix: String,
    // For each name, the next number to append if it is asked for again.
    given: HashMap<String, usize>,
}

impl Default for Paths {
    fn default() -> Self {
        Paths { scopes: vec![Scope::default()] }
    }
}

impl Paths {
    /// Opens a scope called `name` inside scope `parent` and returns its index.
    pub fn enter(&mut self, parent: usize, name: &str) -> usize {
        let prefix = self.path(parent, name) + "/";
        self.scopes.push(Scope { prefix, ..Scope::default() });
        self.scopes.len() - 1
    }

    /// The beginning of all paths in a scope.
    pub fn prefix(&self, scope: usize) -> &str {
        &self.scopes[scope].prefix
    }

    /// The path of a leaf: its own name, or its kind in lower case.
    pub fn leaf(&mut self, scope: usize, name: Option<&str>, kind: &str) -> String {
        match name {
            Some(name) => self.path(scope, name),
            // The name of a user's class may hold what parts a path.
            None => self.path(scope, &kind.to_lowercase().replace('/', "_")),
        }
    }

    /// The path of `name` in `scope`. A name that is taken gets the suffix `_1`, then `_2`, and so on.
    fn path(&mut self, scope: usize, name: &str) -> String {
        let Scope { prefix, given } = &mut self.scopes[scope];
        let mut candidate = name.to_owned();
        let mut number = given.get(name).copied().unwrap_or(0);
        while given.contains_key(&candidate) {
            candidate = format!("{name}_{number}");
            number += 1;
        }
        given.insert(name.to_owned(), number.max(1));
        given.entry(candidate.clone()).or_insert(1);
        format!("{prefix}{candidate}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_are_numbered_and_never_collide() {
        let mut paths = Paths::default();
        let scope = paths.enter(0, "blocks");
        assert_eq!(paths.leaf(scope, None, "Linear"), "blocks/linear");
        assert_eq!(paths.leaf(scope, Some("linear_1"), "Linear"), "blocks/linear_1");
        assert_eq!(paths.leaf(scope, None, "Linear"), "blocks/linear_2");
        assert_eq!(paths.leaf(0, None, "Linear"), "linear");
        assert_eq!(paths.enter(0, "blocks"), 2);
        assert_eq!(paths.leaf(2, Some("q"), "Linear"), "blocks_1/q");
    }
}
