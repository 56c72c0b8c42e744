//! Tables in virsh's layout, for terminals and pipes.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::suggest;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What `--columns` and the JSON document call it.
    pub key: &'static str,
    /// What stands above it.
    pub header: &'static str,
    /// Shown only by `-o wide` or when `--columns` names it.
    pub wide: bool,
}

impl Column {
    /// A column that every table shows.
    #[must_use]
    pub const fn new(key: &'static str, header: &'static str) -> Self {
        Self {
            key,
            header,
            wide: false,
        }
    }

    /// A column that only wide tables show.
    #[must_use]
    pub const fn wide(key: &'static str, header: &'static str) -> Self {
        Self {
            key,
            header,
            wide: true,
        }
    }
}

/// Rows under columns; each row has one cell per column.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// All columns there are.
    pub columns: Vec<Column>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

/// Which part of a table is printed and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape<'a> {
    /// The keys of `--columns`, in the order asked for.
    pub columns: Option<&'a [String]>,
    /// Whether wide columns are included.
    pub wide: bool,
    /// Whether the header and its rule are left out.
    pub noheader: bool,
    /// Columns of the terminal; `None` when nothing is cut.
    pub width: Option<usize>,
}

/// A column is never cut to fewer characters than this.
const NARROWEST: usize = 6;
/// What virsh puts around a cell: one space before, two after.
const PADDING: usize = 3;

impl Table {
    /// The text, each line ended.
    ///
    /// # Errors
    /// A column that the table does not have.
    pub fn render(&self, shape: &Shape<'_>) -> Result<String> {
        let chosen = self.choose(shape)?;
        let mut widths: Vec<usize> = chosen
            .iter()
            .map(|&index| {
                let header = (!shape.noheader).then_some(self.columns[index].header);
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                let cells = cells.map(|cell| shown(cell).width()).max();
                header.map_or(0, str::width).max(cells.unwrap_or(0))
            })
            .collect();
        if let Some(width) = shape.width {
            fit(&mut widths, width);
        }
        let mut text = String::new();
        if !shape.noheader {
            let headers = chosen.iter().map(|&index| self.columns[index].header);
            line(&mut text, headers, &widths);
            let rule: usize = widths.iter().map(|width| width + PADDING).sum();
            let rule = shape.width.map_or(rule, |width| rule.min(width));
            text.push_str(&"-".repeat(rule));
            text.push('\n');
        }
        for row in &self.rows {
            let cells = chosen.iter().map(|&index| row.get(index));
            line(
                &mut text,
                cells.map(|cell| cell.map_or("", String::as_str)),
                &widths,
            );
        }
        Ok(text)
    }

    /// The indices of the columns to print.
    fn choose(&self, shape: &Shape<'_>) -> Result<Vec<usize>> {
        let Some(keys) = shape.columns else {
            let all = self.columns.iter().enumerate();
            let kept = all.filter(|(_, column)| shape.wide || !column.wide);
            return Ok(kept.map(|(index, _)| index).collect());
        };
        let find = |key: &String| {
            let position = self.columns.iter().position(|column| column.key == key);
            position.ok_or_else(|| unknown_column(key, self.columns.iter().map(|c| c.key)))
        };
        keys.iter().map(find).collect()
    }
}

/// The error for `--columns` with a key that is not there.
pub(crate) fn unknown_column<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known: Vec<&str> = known.collect();
    let near = suggest::did_you_mean(key, known.iter().copied());
    let all = format!("the columns are: {}", known.join(", "));
    let fix = near.map_or_else(|| all.clone(), |near| format!("{near} {all}"));
    Failure::new(Code::E0006, format!("there is no column '{key}'"))
        .fix(fix)
        .next("run it again with -o wide to see every column")
}

/// Shortens the widest columns until a line fits the terminal.
fn fit(widths: &mut [usize], available: usize) {
    loop {
        // The last cell needs no padding after it.
        let line: usize = widths.iter().map(|width| width + PADDING).sum();
        if line.saturating_sub(PADDING - 1) <= available {
            return;
        }
        let Some(widest) = widths.iter_mut().max_by_key(|width| **width) else {
            return;
        };
        if *widest <= NARROWEST {
            return;
        }
        *widest -= 1;
    }
}

fn line<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let start = text.len();
    for (cell, width) in cells.zip(widths) {
        let cell = cut(&shown(cell), *width);
        text.push(' ');
        text.push_str(&cell);
        text.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 2));
    }
    let end = text[start..].trim_end().len();
    text.truncate(start + end);
    text.push('\n');
}

/// The cell without characters that would break the line or command the terminal.
fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    let replace = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    cell.chars().map(replace).collect()
}

/// The text in at most `width` columns, with an ellipsis where it was cut.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        Table {
            columns: vec![
                Column::new("name", "Name"),
                Column::new("state", "State"),
                Column::new("autostart", "Autostart"),
                Column::wide("path", "Path"),
            ],
            rows: vec![
                row([
                    "default-pool",
                    "active",
                    "no",
                    "/var/lib/cenote/default-pool",
                ]),
                row(["名前", "inactive", "yes", ""]),
            ],
        }
    }

    #[test]
    fn looks_like_virsh() {
        let text = table().render(&Shape::default()).expect("renders");
        assert_eq!(
            text,
            " Name           State      Autostart\n\
             --------------------------------------\n \
             default-pool   active     no\n \
             名前           inactive   yes\n"
        );
    }

    #[test]
    fn a_terminal_of_40_columns_gets_no_longer_line() {
        let shape = Shape {
            wide: true,
            width: Some(40),
            ..Shape::default()
        };
        let text = table().render(&shape).expect("renders");
        assert_eq!(
            text,
            " Name       State      Autost…   Path\n\
             ----------------------------------------\n \
             default…   active     no        /var/l…\n \
             名前       inactive   yes       -\n"
        );
    }

    #[test]
    fn columns_are_chosen_by_key_and_unknown_ones_refused() {
        let keys = ["path".to_owned(), "name".to_owned()];
        let shape = Shape {
            columns: Some(&keys),
            noheader: true,
            ..Shape::default()
        };
        let text = table().render(&shape).expect("renders");
        assert_eq!(
            text,
            " /var/lib/cenote/default-pool   default-pool\n -                              名前\n"
        );
        let keys = ["nam".to_owned()];
        let shape = Shape {
            columns: Some(&keys),
            ..Shape::default()
        };
        let failure = table().render(&shape).expect_err("refused");
        assert!(failure.render(false).contains("did you mean 'name'?"));
    }

    #[test]
    fn control_characters_in_names_stay_in_their_cell() {
        let table = Table {
            columns: vec![Column::new("name", "Name")],
            rows: vec![vec!["a\nb\u{1b}[2J".to_owned()]],
        };
        let text = table.render(&Shape::default()).expect("renders");
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains('\u{1b}'));
    }
}
