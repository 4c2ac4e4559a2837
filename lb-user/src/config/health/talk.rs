//! Keys of checks that send and expect bytes.

use crate::config::{
    model::{Pattern, Step},
    raw::{Table, Value},
    value::{self, Fault},
};

/// All of them.
pub(super) const KEYS: &[&str] = &["send", "expect", "steps"];

/// Steps of one conversation.
const MAX_STEPS: usize = 32;

/// Read them: `steps`, or `send` and `expect` for the short form. No steps at all are fine.
pub(super) fn read(table: &mut Table<'_>) -> Option<Vec<Step>> {
    let send = table.get("send");
    let expect = table.get("expect");
    let Some(steps) = table.get("steps") else {
        let send = send.map(|value| read_step("send", &value));
        let expect = expect.map(|value| read_step("expect", &value));
        return send.into_iter().chain(expect).collect();
    };
    for value in [send, expect].into_iter().flatten() {
        value.refuse(Fault::new(
            "is not used together with steps",
            "make it one of the steps",
        ));
    }
    read_steps(&steps)
}

fn read_steps(value: &Value<'_>) -> Option<Vec<Step>> {
    let elements = value.elements();
    if value.is_empty_array() || elements.len() > MAX_STEPS {
        let hint = format!("write 1..{MAX_STEPS} steps such as {{ expect = \"ready\" }}");
        let problem = format!("has {} steps", elements.len());
        value.refuse(Fault::new(problem, hint));
    }
    // All of them are read, so that every error is found.
    let steps: Vec<_> = elements.iter().map(read_element).collect();
    steps.into_iter().collect()
}

/// `{ send = "..." }` and so on: one key, one step.
fn read_element(element: &Value<'_>) -> Option<Step> {
    let mut table = element.table()?;
    let mut steps = Vec::new();
    for key in ["send", "send_hex", "expect", "expect_hex", "expect_regex"] {
        steps.extend(table.get(key).map(|value| read_step(key, &value)));
    }
    table.finish();
    let count = steps.len();
    match steps.pop() {
        Some(step) if count == 1 => step,
        _ => {
            element.refuse(Fault::new(
                format!("has {count} actions"),
                "write one of send, send_hex, expect, expect_hex and expect_regex in each step",
            ));
            None
        }
    }
}

fn read_step(key: &str, value: &Value<'_>) -> Option<Step> {
    let bytes = |text: &str| value::not_empty(text).map(String::into_bytes);
    let expect = |bytes| Step::Expect(Pattern::Bytes(bytes));
    let step = match key {
        "send" => value.text("PING\r\n", |text| bytes(text).map(Step::Send)),
        "send_hex" => value.text("0d 0a", |text| value::hex(text).map(Step::Send)),
        "expect" => value.text("+PONG", |text| bytes(text).map(expect)),
        "expect_hex" => value.text("0d 0a", |text| value::hex(text).map(expect)),
        _ => value.text("^\\+PONG", |text| {
            let regex = value::regex(text)?;
            Ok(Step::Expect(Pattern::Regex(regex)))
        }),
    };
    step.map(|step| step.value)
}
