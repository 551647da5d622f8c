/// Matches the beginning of `text` with `pattern`, in which `.` stands for a dot or an underscore and `#` for a number. What follows
/// must be the end or a dot or underscore, which is taken off. Gives the numbers and the rest.
pub(super) fn matches<'t>(pattern: &str, text: &'t str) -> Option<(Vec<usize>, &'t str)> {
    let mut numbers = Vec::new();
    let mut rest = text;
    for expected in pattern.chars() {
        match expected {
            '.' => rest = rest.strip_prefix(['.', '_'])?,
            '#' => {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                // No model has more than thousands of anything; 007 is no way to write a number.
                let is_number =
                    (1..=MOST_DIGITS).contains(&digits) && (digits == 1 || !rest.starts_with('0'));
                numbers.push(rest[..digits].parse().ok().filter(|_| is_number)?);
                rest = &rest[digits..];
            }
            expected => rest = rest.strip_prefix(expected)?,
        }
    }
    match rest.strip_prefix(['.', '_']) {
        Some("") => None,
        Some(rest) => Some((numbers, rest)),
        None => rest.is_empty().then_some((numbers, rest)),
    }
}

const MOST_DIGITS: usize = 3;

/// The pattern with the numbers in the places of its `#`.
pub(super) fn filled(pattern: &str, numbers: &[usize]) -> String {
    let mut numbers = numbers.iter();
    let mut name = String::with_capacity(pattern.len() + 4);
    for c in pattern.chars() {
        match (c, numbers.len()) {
            ('#', 1..) => name.extend(numbers.next().map(usize::to_string)),
            (c, _) => name.push(c),
        }
    }
    name
}

/// The whole of `text` by the first of the patterns that it matches: the pair's second with the numbers of the first.
pub(super) fn translated(pairs: &[(&str, &str)], text: &str) -> Option<String> {
    pairs.iter().find_map(|(pattern, name)| {
        let (numbers, rest) = matches(pattern, text)?;
        rest.is_empty().then(|| filled(name, &numbers))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_one_reading() {
        assert_eq!(matches("down_blocks.#", "down_blocks_12_resnets_0"), Some((vec![12], "resnets_0")));
        assert_eq!(matches("a.#.b", "a_1.b"), Some((vec![1], "")));
        for text in
            ["a_1_bc", "a__b", "a_1_b_", "a_01_b", "a_1234_b", "a_99999999999999999999_b", "a", "\u{e9}"]
        {
            assert_eq!(matches("a.#.b", text), None, "{text}");
        }
        assert_eq!(translated(&[("ff.net.#", "x.#.y")], "ff_net_2"), Some("x.2.y".to_string()));
        assert_eq!(translated(&[("ff.net.#", "x.#.y")], "ff_net_2_proj"), None);
    }
}
