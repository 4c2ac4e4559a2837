//! What an unhappy server says, in one line for operators.

use serde_json::Value;

/// Longest line that is taken, in characters.
const MAX_LINE: usize = 160;

/// What `body` says is wrong, if it says anything to people:
///
/// - a kube-apiserver lists its checks, `[-]etcd failed: reason withheld` among them: the first
///   that failed, and how many more did;
/// - the `message` of a JSON object, such as a `Status` of Kubernetes;
/// - the title of a page;
/// - else the first line that is not blank.
pub fn complaint(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let said = failed_checks(&text).or_else(|| message(&text)).or_else(|| {
        if text.trim_start().starts_with('<') {
            title(&text)
        } else {
            text.lines().map(plain).find(|line| !line.is_empty())
        }
    });
    said.filter(|said| !said.is_empty())
}

fn failed_checks(text: &str) -> Option<String> {
    let mut failed = text.lines().filter_map(|line| line.strip_prefix("[-]"));
    let first = plain(failed.next()?);
    let first = first.trim_end_matches(": reason withheld");
    Some(match failed.count() {
        0 => first.to_owned(),
        more => format!("{first}, and {more} more"),
    })
}

fn message(text: &str) -> Option<String> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let object: Value = serde_json::from_str(text).ok()?;
    object.get("message")?.as_str().map(plain)
}

fn title(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("<title>")?;
    rest.split_once('<').map(|(title, _)| plain(title))
}

/// One line without control characters, of bounded length.
fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(visible).take(MAX_LINE).collect();
    text.trim().to_owned()
}

/// Longest piece of a conversation that is shown, in bytes.
const MAX_QUOTE: usize = 48;

/// Bytes of a conversation in quotes, cut off where they are many.
pub fn quoted(bytes: &[u8]) -> String {
    let (shown, more) = match bytes.get(..MAX_QUOTE) {
        Some(first) if bytes.len() > MAX_QUOTE => (first, "..."),
        _ => (bytes, ""),
    };
    format!("\"{}\"{more}", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        complaint(body.as_bytes()).unwrap_or_default()
    }

    /// Proves that an apiserver's list of checks is cut down to those that failed.
    #[test]
    fn failed_checks_are_named() {
        let one = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed\n";
        assert_eq!(said(one), "etcd failed");
        let two = "[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\n";
        assert_eq!(said(two), "etcd failed, and 1 more");
    }

    /// Proves that what a body says in other forms is found, and that nothing is made up.
    #[test]
    fn other_bodies_say_what_they_say() {
        let status =
            "{\n  \"kind\": \"Status\",\n  \"message\": \"Unauthorized\",\n  \"code\": 401\n}";
        assert_eq!(said(status), "Unauthorized");
        let page = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n";
        assert_eq!(said(page), "502 Bad Gateway");
        assert_eq!(said("\r\n\n  overloaded\nsecond line"), "overloaded");
        assert_eq!(said("\x1b[31mred\x07"), "[31mred");
        for nothing in ["", " \n", "<html>", "{\"a\": 1, \"message\": 5", "\0\0"] {
            let said = complaint(nothing.as_bytes());
            assert!(
                said.is_none() || nothing.starts_with('{'),
                "{nothing:?}: {said:?}"
            );
        }
        assert_eq!(said(&"é".repeat(1000)).chars().count(), MAX_LINE);
        assert_eq!(complaint(&[0xff, b'\n', b'x']), Some("\u{fffd}".to_owned()));
    }

    /// Proves that quotes are readable whatever the bytes are.
    #[test]
    fn quotes_are_escaped_and_bounded() {
        assert_eq!(quoted(b"-ERR \"x\"\r\n\xff"), r#""-ERR \"x\"\r\n\xff""#);
        assert_eq!(quoted(&[b'a'; 48]).len(), 50);
        assert_eq!(quoted(&[b'a'; 49]).len(), 53);
    }
}
