//! JSON in the one form that is signed: RFC 8785 (JCS) for the values that
//! certificates have, which are objects, arrays, strings, integers, booleans
//! and null. Keys sorted by their UTF-16 units, no blanks, no fractions.

use serde::Serialize;
use serde_json::Value;

/// The canonical bytes of `value`; an error for numbers with fractions or
/// beyond 64 bits, and for paths that are no UTF-8.
pub(super) fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    write(&value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(true) => out.extend(b"true"),
        Value::Bool(false) => out.extend(b"false"),
        Value::Number(number) if number.is_u64() || number.is_i64() => {
            out.extend(number.to_string().bytes());
        }
        Value::Number(number) => return Err(format!("{number} is no integer")),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (number, (key, member)) in sorted.into_iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// RFC 8785 section 3.2.2.2.
fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for symbol in text.chars() {
        match symbol {
            '"' => out.extend(b"\\\""),
            '\\' => out.extend(b"\\\\"),
            '\u{8}' => out.extend(b"\\b"),
            '\t' => out.extend(b"\\t"),
            '\n' => out.extend(b"\\n"),
            '\u{c}' => out.extend(b"\\f"),
            '\r' => out.extend(b"\\r"),
            control if control < ' ' => {
                out.extend(format!("\\u{:04x}", control as u32).bytes());
            }
            other => out.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8785 section 3.2.3, without its fractions.
    #[test]
    fn keys_sort_by_utf16_and_strings_escape_little() {
        let value: Value = serde_json::from_str(
            "{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet \
             With Dagesh\",\"1\":\"One\",\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":\
             \"Control\",\"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}",
        )
        .unwrap();
        let text = String::from_utf8(to_vec(&value).unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin \
             Small Letter O With Diaeresis\",\"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: \
             Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
        );
        let odd = serde_json::json!(["\u{1f}\u{7f}/\"\\\u{8}", -7, u64::MAX, null, true]);
        assert_eq!(
            String::from_utf8(to_vec(&odd).unwrap()).unwrap(),
            "[\"\\u001f\u{7f}/\\\"\\\\\\b\",-7,18446744073709551615,null,true]"
        );
        assert!(to_vec(&1.5).is_err());
    }
}
