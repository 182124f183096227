//! Variables in link targets: `$(NAME)` and `$(NAME:-default)`.
//!
//! Facts: the first `)` ends an expression, nothing is nested and results are not expanded again; an
//! expression that never ends is kept as it is; an unset variable without a default is nothing.

use std::collections::BTreeMap;

/// Values of variables by name.
pub type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

/// The target with all its expressions replaced.
pub fn expand(target: &[u8], variables: &Variables) -> Vec<u8> {
    let mut expanded = Vec::with_capacity(target.len());
    let mut rest = target;
    while let Some(start) = find(rest, b"$(") {
        let Some(length) = find(&rest[start..], b")") else { break };
        expanded.extend_from_slice(&rest[..start]);
        let expression = &rest[start + 2..start + length];
        let (name, default) = match find(expression, b":-") {
            Some(at) => (&expression[..at], &expression[at + 2..]),
            None => (expression, &b""[..]),
        };
        expanded.extend_from_slice(variables.get(name).map_or(default, Vec::as_slice));
        rest = &rest[start + length + 1..];
    }
    expanded.extend_from_slice(rest);
    expanded
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_replaced_once() {
        let set = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let variables = Variables::from([set("A", "x"), set("EMPTY", ""), set("NESTED", "$(A)")]);
        for (target, expected) in [
            ("plain", "plain"),
            ("$(A)/b", "x/b"),
            ("/p/$(A)$(A)", "/p/xx"),
            ("$(UNSET)", ""),
            ("$(UNSET:-d/e)", "d/e"),
            ("$(EMPTY:-d)", ""),
            ("$(A:-d)", "x"),
            ("$(NESTED)", "$(A)"),
            ("$(UNSET:-$(A:-c))", "$(A:-c)"),
            ("a$(A", "a$(A"),
            ("$()", ""),
            ("$A $", "$A $"),
        ] {
            assert_eq!(String::from_utf8(expand(target.as_bytes(), &variables)).unwrap(), expected, "{target}");
        }
    }
}
