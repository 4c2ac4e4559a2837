//! What reports do not show: passwords and tokens, by what stands before them. The configuration that is
//! written holds them, and root alone can read it.

/// What stands in place of a secret.
const HIDDEN: &str = "********";

/// Texts that a secret follows, in lower case, with a space for any white space.
const BEFORE: [&str; 14] = [
    "auth_pass ",
    "authorization:",
    "authorization\" = ",
    "bearer ",
    "keepalived_password: ",
    "\"auth ",
    "secret = ",
    "pass=",
    "password=",
    "passwd=",
    "secret=",
    "token=",
    "api-key:",
    "token:",
];

/// Options of programs that fetch something.
const OPTIONS: [&str; 3] = [" -u ", " --user ", " --password "];

/// `text` up to a secret, and the secret; `None` where there is none.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    let plain: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_whitespace() {
                ' '
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    let fetches = plain.contains("curl") || plain.contains("wget");
    let options = OPTIONS.iter().filter(|_| fetches);
    let ends = BEFORE.iter().chain(options);
    let ends = ends.filter_map(|before| Some(plain.find(before)? + before.len()));
    let (before, secret) = text.split_at_checked(ends.min()?)?;
    (!secret.trim().is_empty()).then_some((before, secret))
}

/// `text` without its secret.
pub(super) fn masked(text: &str) -> String {
    match split(text) {
        Some((before, _)) => format!("{before}{HIDDEN}"),
        None => text.to_owned(),
    }
}

/// What follows `before` is a secret.
pub(super) fn hidden(before: &str) -> String {
    format!("{before}{HIDDEN}")
}

/// Whether a variable, or a header, of this name holds a secret.
pub(super) fn is_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let signs = [
        "pass", "secret", "token", "auth", "apikey", "api-key", "cookie",
    ];
    signs.iter().any(|sign| name.contains(sign))
}

/// What is said about words with these secrets, without them: a key's name stays, but not its value.
pub(super) fn without(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        let parts = secret.split(|c: char| c.is_whitespace() || "\"'\\".contains(c));
        for part in parts.filter(|part| part.len() > 2) {
            text = text.replace(part, HIDDEN);
        }
    }
    text
}

/// The same of `KEY = VALUE` or `KEY: VALUE`; other texts hold no value.
pub(super) fn without_value(text: &str) -> String {
    let end = [" = ", ": "]
        .iter()
        .filter_map(|sign| Some(text.find(sign)? + sign.len()));
    let key = end.min().and_then(|end| text.get(..end));
    key.map_or_else(|| text.to_owned(), hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What people write before a secret, and texts that hold none.
    #[test]
    fn secrets_are_cut_off() {
        for (text, shown) in [
            ("@lb2 auth_pass\tx y", "@lb2 auth_pass\t********"),
            ("$VRRP_PASS=x", "$VRRP_PASS=********"),
            (
                "curl -k -u me:x https://localhost:6443/",
                "curl -k -u ********",
            ),
            (
                "curl -H 'Authorization: Bearer x'",
                "curl -H 'Authorization:********",
            ),
            ("KEEPALIVED_PASSWORD: x", "KEEPALIVED_PASSWORD: ********"),
            ("käse --token=x", "käse --token=********"),
        ] {
            assert_eq!(masked(text), shown);
        }
        for text in ["sort -u x", "auth_type PASS", "password=", "auth_pass", ""] {
            assert_eq!(masked(text), text);
        }
    }

    /// Explanations keep what is no secret.
    #[test]
    fn explanations_are_without_secrets() {
        assert_eq!(
            without("write [\"/x\", \"me:pw\"]", &["me:pw /x".to_owned()]),
            "write [\"/x\", \"********\"]"
        );
        assert_eq!(
            without_value("vrrp.auth = { secret = \"x\" }"),
            "vrrp.auth = ********"
        );
        assert_eq!(
            without_value("service.health.steps: { send = \"x\" }"),
            "service.health.steps: ********"
        );
    }
}
