//! What reading commands print is what `docs/schemas` promises, and promises are not taken back.

mod common;

use std::path::{Path, PathBuf};

use cenote::verb::Kind;
use cenote::verbs;
use cenote::view::schemas;
use common::fixture;
use serde_json::Value;

fn file_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/schemas")
        .join(format!("{name}.json"))
}

/// Properties of `old` that `new` does not have, and promises of `old` that `new` does not keep.
fn removed(place: &str, old: &Value, new: &Value, gone: &mut Vec<String>) {
    if let Some(fields) = old.get("properties").and_then(Value::as_object) {
        for (name, field) in fields {
            match new.get("properties").and_then(|fields| fields.get(name)) {
                Some(now) => removed(&format!("{place}.{name}"), field, now, gone),
                None => gone.push(format!("{place}.{name}")),
            }
        }
    }
    for name in old
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let kept = new.get("required").and_then(Value::as_array);
        if !kept.is_some_and(|kept| kept.contains(name)) {
            gone.push(format!("{place}.{name} is no longer always there"));
        }
    }
    if let (Some(old), Some(new)) = (old.get("items"), new.get("items")) {
        removed(&format!("{place}[]"), old, new, gone);
    }
    for (name, definition) in old
        .get("$defs")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        match new.get("$defs").and_then(|all| all.get(name)) {
            Some(now) => removed(&format!("{place}#{name}"), definition, now, gone),
            None => gone.push(format!("{place}#{name}")),
        }
    }
}

#[test]
fn schemas_in_the_repository_are_those_of_the_program() {
    let bless = std::env::var_os("CENOTE_BLESS").is_some();
    for (name, schema) in schemas::all() {
        let now = serde_json::to_value(&schema).expect("schemas are JSON");
        let path = file_of(name);
        let written = std::fs::read_to_string(&path).ok();
        let old: Value = match &written {
            Some(text) => serde_json::from_str(text).expect("schemas in the repository parse"),
            None if bless => Value::Null,
            None => panic!("{name}: no schema; make it with CENOTE_BLESS=1 cargo test"),
        };
        let mut gone = Vec::new();
        removed(name, &old, &now, &mut gone);
        assert!(
            gone.is_empty(),
            "fields that scripts rely on are gone: {gone:?}"
        );
        if bless {
            let text = serde_json::to_string_pretty(&now).expect("schemas are JSON");
            std::fs::write(&path, text + "\n").expect("written");
        } else {
            assert_eq!(old, now, "{name}: renew it with CENOTE_BLESS=1 cargo test");
        }
    }
}

#[test]
fn a_removed_field_is_noticed() {
    let (_, schema) = schemas::all()
        .into_iter()
        .find(|(name, _)| *name == "pool-list")
        .expect("known");
    let old = serde_json::to_value(&schema).expect("JSON");
    let mut new = old.clone();
    let fields = new
        .pointer_mut("/$defs/PoolItem/properties")
        .expect("fields");
    fields.as_object_mut().expect("an object").remove("uuid");
    let mut gone = Vec::new();
    removed("pool-list", &old, &new, &mut gone);
    assert_eq!(gone, ["pool-list#PoolItem.uuid"]);
}

#[test]
fn every_reading_command_prints_what_its_schema_says() {
    let cenote = fixture();
    common::snapshots(&cenote);
    let known = schemas::all();
    // Nothing runs in the fixture; `kvm_domains` has these.
    let needs_a_run = |name: &str| ["domblkstat", "domifaddr"].contains(&name);
    let reading = verbs::all().iter().filter(|entry| entry.kind == Kind::Read);
    for entry in reading.filter(|entry| !needs_a_run(entry.name)) {
        let (_, schema) = known
            .iter()
            .find(|(name, _)| *name == entry.name)
            .unwrap_or_else(|| panic!("{} has no schema", entry.name));
        let schema = serde_json::to_value(schema).expect("JSON");
        let validator = jsonschema::validator_for(&schema).expect("a valid schema");
        let mut validated = 0;
        for example in entry.examples {
            // Examples that choose columns or another format print a part only.
            if example.line.contains("--columns")
                || example.line.contains("-o ")
                || example.line.contains("--name")
            {
                continue;
            }
            let run = cenote.shell(&format!("{} -o json", example.line));
            assert!([0, 6].contains(&run.code), "{}: {run:?}", example.line);
            let value = run.json();
            let errors: Vec<String> = validator
                .iter_errors(&value)
                .map(|error| error.to_string())
                .collect();
            assert!(
                errors.is_empty(),
                "{}: {errors:?}\n{}",
                example.line,
                run.stdout
            );
            validated += 1;
        }
        assert!(
            validated > 0,
            "{} has no example that prints all of it",
            entry.name
        );
    }
}

#[test]
fn plans_results_and_events_are_what_their_schemas_say() {
    let cenote = fixture();
    let validator = |name: &str| {
        let all = schemas::all();
        let (_, schema) = all
            .into_iter()
            .find(|(known, _)| *known == name)
            .expect("known");
        let schema = serde_json::to_value(&schema).expect("JSON");
        jsonschema::validator_for(&schema).expect("a valid schema")
    };
    let plan = cenote
        .run("vol-delete disk.raw --dry-run -o json")
        .ok()
        .json();
    assert!(validator("plan").is_valid(&plan), "{plan}");
    assert_eq!(plan["asks"], "ask");
    let done = cenote.run("pool-refresh default -o json").ok().json();
    assert!(validator("done").is_valid(&done), "{done}");
    let event = validator("event");
    let lines = cenote
        .run("event --after 0 --loop --timeout 0 -o json")
        .ok()
        .stdout;
    assert!(lines.lines().count() > 3);
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).expect("each line is a document");
        assert!(event.is_valid(&value), "{line}");
    }
}
