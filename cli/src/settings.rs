//! Where each setting comes from: option, environment, project, user, system, built in.
//!
//! Files are TOML with the keys of [`KEYS`]. The project's file is the nearest `.cenote.toml` from
//! the working directory upwards that belongs to the caller or to root; another user's file is not
//! believed, because it could point the command at a foreign state folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::globals::{Color, Globals, OutputFormat, ProgressMode};
use crate::suggest;

/// The keys of a configuration file, the option each stands for and its built-in value.
pub const KEYS: &[(&str, &str)] = &[
    ("backing-dirs", ""),
    ("color", "auto"),
    ("connect", "local"),
    ("debug", "false"),
    ("noheader", "false"),
    ("output", "table"),
    ("progress", "auto"),
    ("quiet", "false"),
    ("state-dir", ""),
];

/// A file larger than this is no configuration (bytes).
const MAX_FILE: u64 = 1 << 20;

/// One setting and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, as in [`KEYS`].
    pub key: &'static str,
    /// Its value, as text.
    pub value: String,
    /// `flag`, `env`, `project`, `user`, `system` or `default`.
    pub layer: &'static str,
    /// The option, variable or file.
    pub origin: String,
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's state folder, when one was named.
    pub state_dir: Option<PathBuf>,
    /// Where backing files may lie besides the pools.
    pub backing_dirs: Vec<PathBuf>,
    /// The connection URI.
    pub connect: String,
    /// How results are printed.
    pub output: OutputFormat,
    /// When to use colour.
    pub color: Color,
    /// How progress is shown.
    pub progress: ProgressMode,
    /// Tables without their header.
    pub noheader: bool,
    /// No messages.
    pub quiet: bool,
    /// Chains of causes.
    pub debug: bool,
    /// 0, 1 or 2: how much is logged.
    pub verbose: u8,
    /// Each setting with its origin, in the order of [`KEYS`].
    pub origins: Vec<Setting>,
}

/// The places that are consulted; tests give their own.
pub struct Sources<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The folder from which `.cenote.toml` is looked for.
    pub working_dir: Option<PathBuf>,
}

impl Sources<'_> {
    /// What the process was started with.
    #[must_use]
    pub fn of_process() -> Sources<'static> {
        Sources {
            env: &|name| std::env::var(name).ok().filter(|value| !value.is_empty()),
            working_dir: std::env::current_dir().ok(),
        }
    }

    /// The configuration files, strongest first: layer, path.
    #[must_use]
    pub fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let mut files = Vec::new();
        if let Some(path) = self.working_dir.as_deref().and_then(project_file) {
            files.push(("project", path));
        }
        let home = (self.env)("HOME").map(|home| PathBuf::from(home).join(".config"));
        let user = (self.env)("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
        if let Some(user) = user {
            files.push(("user", user.join("cenote/config.toml")));
        }
        let system = (self.env)("CENOTE_CONFIG_SYSTEM").map(PathBuf::from);
        files.push((
            "system",
            system.unwrap_or_else(|| PathBuf::from("/etc/cenote/config.toml")),
        ));
        files
    }
}

impl Settings {
    /// Merges all layers.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, an unknown key, a value that the key does not take.
    pub fn resolve(globals: &Globals, noheader: bool, sources: &Sources<'_>) -> Result<Self> {
        let mut found: BTreeMap<&'static str, Setting> = BTreeMap::new();
        for (key, value) in KEYS {
            put(&mut found, key, value, "default", "built in");
        }
        for (layer, path) in sources.files().into_iter().rev() {
            for (key, value) in read_file(&path)? {
                put(&mut found, key, &value, layer, &path.display().to_string());
            }
        }
        for (key, _) in KEYS {
            let name = variable(key);
            if let Some(value) = (sources.env)(&name) {
                put(&mut found, key, &value, "env", &name);
            }
        }
        for (key, value) in flags(globals, noheader) {
            put(&mut found, key, &value, "flag", &format!("--{key}"));
        }
        let state_dir = &found["state-dir"].value;
        Ok(Self {
            state_dir: Some(PathBuf::from(state_dir)).filter(|dir| !dir.as_os_str().is_empty()),
            backing_dirs: std::env::split_paths(&found["backing-dirs"].value)
                .filter(|dir| !dir.as_os_str().is_empty())
                .collect(),
            connect: found["connect"].value.clone(),
            output: choice(&found["output"])?,
            color: choice(&found["color"])?,
            progress: choice(&found["progress"])?,
            noheader: boolean(&found["noheader"])?,
            quiet: boolean(&found["quiet"])?,
            debug: boolean(&found["debug"])?,
            verbose: globals.verbose,
            origins: found.into_values().collect(),
        })
    }
}

/// The variable that stands for a key.
fn variable(key: &str) -> String {
    format!("CENOTE_{}", key.replace('-', "_").to_uppercase())
}

fn put(
    found: &mut BTreeMap<&'static str, Setting>,
    key: &'static str,
    value: &str,
    layer: &'static str,
    origin: &str,
) {
    let setting = Setting {
        key,
        value: value.to_owned(),
        layer,
        origin: origin.to_owned(),
    };
    found.insert(key, setting);
}

/// What was given on the command line.
fn flags(globals: &Globals, noheader: bool) -> Vec<(&'static str, String)> {
    let mut flags = Vec::new();
    if let Some(dir) = &globals.state_dir {
        flags.push(("state-dir", dir.display().to_string()));
    }
    if !globals.backing_dirs.is_empty() {
        // A folder with a colon in its name cannot be said so and is left out.
        let joined = std::env::join_paths(&globals.backing_dirs).unwrap_or_default();
        flags.push(("backing-dirs", joined.to_string_lossy().into_owned()));
    }
    if let Some(uri) = &globals.connect {
        flags.push(("connect", uri.clone()));
    }
    if let Some(output) = globals.output {
        flags.push(("output", name_of(output)));
    }
    if let Some(color) = globals.color {
        flags.push(("color", name_of(color)));
    }
    if let Some(progress) = globals.progress {
        flags.push(("progress", name_of(progress)));
    }
    for (key, set) in [
        ("quiet", globals.quiet),
        ("debug", globals.debug),
        ("noheader", noheader),
    ] {
        if set {
            flags.push((key, "true".to_owned()));
        }
    }
    flags
}

fn name_of<T: ValueEnum>(value: T) -> String {
    let name = value.to_possible_value();
    name.map(|name| name.get_name().to_owned())
        .unwrap_or_default()
}

/// The nearest `.cenote.toml` that the caller may trust.
fn project_file(start: &Path) -> Option<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    start.ancestors().find_map(|folder| {
        let path = folder.join(".cenote.toml");
        let metadata = fs::metadata(&path).ok()?;
        let trusted = metadata.uid() == me || metadata.uid() == 0;
        (metadata.is_file() && trusted).then_some(path)
    })
}

/// The settings of one file; a file that does not exist has none.
fn read_file(path: &Path) -> Result<Vec<(&'static str, String)>> {
    let shown = path.display();
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(Vec::new()),
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(bad_file(path, "it is larger than 1 MiB".to_owned()));
        }
        Err(error) => return Err(bad_file(path, error.to_string())),
        Ok(_) => fs::read_to_string(path).map_err(|error| bad_file(path, error.to_string()))?,
    };
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| bad_file(path, error.to_string()))?;
    let mut settings = Vec::new();
    for (name, value) in table {
        let Some((key, _)) = KEYS.iter().find(|(key, _)| *key == name) else {
            let mut failure = Failure::new(Code::E0004, format!("{shown}: unknown key '{name}'"))
                .next("cenote config show --origin");
            let names = KEYS.iter().map(|(key, _)| *key);
            if let Some(near) = suggest::nearest(&name, names) {
                failure = failure.fix(format!("did you mean '{near}'?"));
            }
            return Err(failure);
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Boolean(flag) => flag.to_string(),
            other => {
                let kind = other.type_str();
                return Err(bad_file(path, format!("'{key}' cannot be a {kind}")));
            }
        };
        settings.push((*key, text));
    }
    Ok(settings)
}

fn bad_file(path: &Path, why: String) -> Failure {
    Failure::new(Code::E0004, format!("cannot use {}", path.display()))
        .why(why)
        .fix("correct the file, or move it away")
        .next("cenote config show --origin")
}

fn choice<T: ValueEnum>(setting: &Setting) -> Result<T> {
    T::from_str(&setting.value, true).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
            .collect();
        bad_value(setting, &names.join(", "))
    })
}

fn boolean(setting: &Setting) -> Result<bool> {
    match setting.value.as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(bad_value(setting, "true, false")),
    }
}

fn bad_value(setting: &Setting, allowed: &str) -> Failure {
    let Setting {
        key, value, origin, ..
    } = setting;
    Failure::new(Code::E0004, format!("'{key}' cannot be '{value}'"))
        .why(format!("the value comes from {origin}"))
        .fix(format!("use one of: {allowed}"))
        .next("cenote config show --origin")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        globals: &Globals,
        env: &[(&str, &str)],
        project: Option<&str>,
        user: Option<&str>,
        system: Option<&str>,
    ) -> Result<Settings> {
        let folder = tempfile::tempdir()
            .map_err(|error| Failure::new(Code::E0101, "cannot make a folder").source(error))?;
        let write = |name: &str, text: Option<&str>| {
            let path = folder.path().join(name);
            let parent = path.parent().map(Path::to_path_buf).unwrap_or_default();
            fs::create_dir_all(parent).and_then(|()| fs::write(&path, text.unwrap_or_default()))
        };
        let written = write("work/.cenote.toml", project)
            .and_then(|()| write("config/cenote/config.toml", user))
            .and_then(|()| write("system.toml", system));
        assert!(written.is_ok(), "{written:?}");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let lookup = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(path("config")),
            "CENOTE_CONFIG_SYSTEM" => Some(path("system.toml")),
            _ => env
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned()),
        };
        let sources = Sources {
            env: &lookup,
            working_dir: Some(folder.path().join("work")),
        };
        Settings::resolve(globals, false, &sources)
    }

    fn layer(settings: &Settings, key: &str) -> &'static str {
        let setting = settings.origins.iter().find(|setting| setting.key == key);
        setting.map_or("", |setting| setting.layer)
    }

    #[test]
    fn each_layer_beats_the_ones_below_it() {
        let flag = Globals {
            output: Some(OutputFormat::Json),
            ..Globals::default()
        };
        let none = Globals::default();
        let env = [("CENOTE_OUTPUT", "yaml")];
        let (project, user, system) = (
            Some("output = 'name'"),
            Some("output = 'wide'"),
            Some("output = 'table'"),
        );
        type Case<'a> = (
            &'a Globals,
            &'a [(&'a str, &'a str)],
            [Option<&'a str>; 3],
            OutputFormat,
            &'a str,
        );
        let table: [Case<'_>; 6] = [
            (
                &flag,
                &env,
                [project, user, system],
                OutputFormat::Json,
                "flag",
            ),
            (
                &none,
                &env,
                [project, user, system],
                OutputFormat::Yaml,
                "env",
            ),
            (
                &none,
                &[],
                [project, user, system],
                OutputFormat::Name,
                "project",
            ),
            (&none, &[], [None, user, system], OutputFormat::Wide, "user"),
            (
                &none,
                &[],
                [None, None, system],
                OutputFormat::Table,
                "system",
            ),
            (
                &none,
                &[],
                [None, None, None],
                OutputFormat::Table,
                "default",
            ),
        ];
        for (globals, env, [project, user, system], output, origin) in table {
            let settings = resolve(globals, env, project, user, system);
            let settings = settings.expect("resolves");
            assert_eq!(settings.output, output, "{origin}");
            assert_eq!(layer(&settings, "output"), origin);
        }
    }

    #[test]
    fn what_a_key_does_not_take_is_refused_with_its_origin() {
        let none = Globals::default();
        let unknown = resolve(&none, &[], Some("ouput = 'json'"), None, None);
        let text = unknown.expect_err("refused").render(false);
        assert!(text.contains("did you mean 'output'?"), "{text}");
        let value = resolve(&none, &[("CENOTE_COLOR", "blue")], None, None, None);
        let text = value.expect_err("refused").render(false);
        assert!(
            text.contains("CENOTE_COLOR") && text.contains("always"),
            "{text}"
        );
        let kind = resolve(&none, &[], None, Some("quiet = 3"), None);
        assert!(kind.is_err());
    }
}
