//! Keys of checks that make an HTTP request.

use std::path::PathBuf;

use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE,
};

use crate::config::{
    Context,
    model::{BodyMatch, HttpConfig, HttpMethod, HttpVersion, StatusRange, bearer_token},
    raw::{Refused, Table, Value},
    value::{self, Fault},
};

/// All of them.
pub(super) const KEYS: &[&str] = &[
    "path",
    "method",
    "http_version",
    "host",
    "headers",
    "expect_status",
    "expect_body",
    "expect_body_regex",
    "bearer_token_file",
    "keep_alive",
];

/// Read them.
pub(super) fn read(table: &mut Table<'_>, context: &Context<'_>) -> Option<HttpConfig> {
    let path = table.get_or("path", "/readyz".to_owned(), |value| {
        value.text("/readyz", value::http_path)
    });
    let method = table.get_or("method", HttpMethod::Get, |value| {
        value.choice(&[
            ("GET", HttpMethod::Get),
            ("HEAD", HttpMethod::Head),
            ("OPTIONS", HttpMethod::Options),
        ])
    });
    let version = table.get_or("http_version", HttpVersion::V11, |value| {
        value.choice(&[("1.1", HttpVersion::V11), ("2", HttpVersion::V2)])
    });
    let host = table
        .get("host")
        .and_then(|value| value.text("kubernetes.default", value::http_host));
    let headers = read_headers(table);
    let expect_status = match table.get("expect_status") {
        Some(value) => read_statuses(&value),
        None => vec![StatusRange::only(200)],
    };
    let expect_body = read_body_match(table, method);
    let token = read_token(table, context, &headers);
    let keep_alive = table.get_or("keep_alive", true, Value::boolean);
    Some(HttpConfig {
        path: path?,
        method: method?,
        version: version?,
        host: host.map(|host| host.value),
        headers,
        expect_status,
        expect_body: expect_body.ok()?,
        bearer_token_file: token.ok()?,
        keep_alive: keep_alive?,
    })
}

/// Final statuses (RFC 9110 section 15), each once: numbers, and ranges as text.
fn read_statuses(value: &Value<'_>) -> Vec<StatusRange> {
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", "write expect_status = [200]"));
    }
    let mut statuses: Vec<StatusRange> = Vec::new();
    for element in value.elements() {
        let read = if element.is_text() {
            element.text("200-399", value::status_range)
        } else {
            element.number(200..=599, |status| Some(StatusRange::only(status)))
        };
        let Some(range) = read.map(|read| read.value) else {
            continue;
        };
        if statuses.iter().any(|known| known.overlaps(range)) {
            let problem = if range.first == range.last {
                format!("{} is there already", range.first)
            } else {
                "overlaps with what is there already".to_owned()
            };
            element.refuse(Fault::new(problem, "write every status once"));
        }
        statuses.push(range);
    }
    statuses
}

/// `headers`, without those that say how the message is sent.
fn read_headers(table: &mut Table<'_>) -> Vec<(String, String)> {
    let reserved =
        |name: &HeaderName| [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(name);
    let mut headers = Vec::new();
    for (name, value) in table.table("headers").entries() {
        let hint = match HeaderName::try_from(&name) {
            Ok(known) if known == HOST => "write host = \"...\" beside it",
            Ok(known) if reserved(&known) => "remove it, checks set it themselves",
            Ok(_) => {
                let value = value.text("value", value::header_value);
                headers.extend(value.map(|value| (name, value.value)));
                continue;
            }
            Err(_) => "write a name such as \"X-Check\"",
        };
        value.refuse(Fault::new("is no header that can be set here", hint));
    }
    headers
}

/// `expect_body` or `expect_body_regex`, for answers that have a body.
fn read_body_match(
    table: &mut Table<'_>,
    method: Option<HttpMethod>,
) -> Result<Option<BodyMatch>, Refused> {
    let text = table.get("expect_body");
    let regex = table.get("expect_body_regex");
    if method == Some(HttpMethod::Head) {
        for value in [&text, &regex].into_iter().flatten() {
            value.refuse(Fault::new(
                "is not used with method = \"HEAD\", whose answers have no body",
                "remove it or write method = \"GET\"",
            ));
        }
    }
    let found = match (text, regex) {
        (None, None) => return Ok(None),
        (Some(_), Some(regex)) => {
            regex.refuse(Fault::new(
                "is not used together with expect_body",
                "remove one of the two",
            ));
            return Err(Refused);
        }
        (Some(text), None) => text
            .text("ok", value::not_empty)
            .map(|text| BodyMatch::Text(text.value)),
        (None, Some(regex)) => regex
            .text("^ok$", value::regex)
            .map(|regex| BodyMatch::Regex(regex.value)),
    };
    found.map(Some).ok_or(Refused)
}

/// `bearer_token_file`, which sets the header `Authorization`.
fn read_token(
    table: &mut Table<'_>,
    context: &Context<'_>,
    headers: &[(String, String)],
) -> Result<Option<PathBuf>, Refused> {
    let Some(value) = table.get("bearer_token_file") else {
        return Ok(None);
    };
    if headers
        .iter()
        .any(|(name, _)| AUTHORIZATION == name.as_str())
    {
        value.refuse(Fault::new(
            "is not used together with headers.Authorization",
            "remove one of the two",
        ));
    }
    let path = value.text("/etc/xvip/token", |named| {
        let (path, content) = context.read(named)?;
        bearer_token(&content).map_err(|problem| {
            Fault::new(
                format!("{named:?} {problem}"),
                "name a file with one line, the token",
            )
        })?;
        Ok(path)
    });
    path.map(|path| Some(path.value)).ok_or(Refused)
}
