//! One page of PDF that says what the certificate says, for people.
//!
//! ISO 32000-1 with the standard fonts and WinAnsi text, so that nothing is
//! embedded; symbols beyond that show as `?`. It names the digest of the
//! certificate's signed content by its signature: the JSON is the evidence.

use pdf_writer::{Content, Finish as _, Name, Pdf, Rect, Ref, Str};

use super::document::Certificate;
use super::domain::DomainReport;
use crate::wipe::{FileReport, Outcome, WipeReport};

const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 56.0;
const LINE: f32 = 12.0;
/// Symbols of 9-point Helvetica that surely fit between label and margin.
const COLUMNS: usize = 78;

/// A page being filled from the top.
struct Page {
    content: Content,
    y: f32,
}

impl Page {
    fn text(&mut self, font: &'static [u8], size: f32, x: f32, text: &str) {
        self.content.begin_text();
        self.content.set_font(Name(font), size);
        self.content.next_line(x, self.y);
        self.content.show(Str(&win_ansi(text)));
        self.content.end_text();
    }

    fn has_room(&self) -> bool {
        self.y > MARGIN + 6.0 * LINE
    }

    fn heading(&mut self, text: &str) {
        self.y -= LINE * 0.8;
        self.text(b"B", 11.0, MARGIN, text);
        self.y -= LINE * 1.3;
    }

    fn row(&mut self, label: &str, value: &str) {
        self.text(b"B", 9.0, MARGIN, label);
        for line in wrap(value, COLUMNS) {
            if !self.has_room() {
                return;
            }
            self.text(b"F", 9.0, MARGIN + 95.0, &line);
            self.y -= LINE;
        }
    }
}

/// The page's bytes.
pub(super) fn render(certificate: &Certificate) -> Vec<u8> {
    let mut page = Page {
        content: Content::new(),
        y: HEIGHT - MARGIN - 10.0,
    };
    page.text(b"B", 18.0, MARGIN, "Certificate of wiping");
    page.y -= LINE * 2.0;
    if let Some(report) = &certificate.report {
        fill(&mut page, certificate, report);
    }
    if let Some(domain) = &certificate.domain {
        fill_domain(&mut page, certificate, domain);
    }
    footer(&mut page, certificate);
    assemble(page.content, certificate)
}

/// What is said of a whole domain.
fn fill_domain(page: &mut Page, certificate: &Certificate, domain: &DomainReport) {
    page.heading("Verdict");
    page.row("Domain", &format!("{} ({})", domain.name, domain.uuid));
    page.row("Verdict", &domain.verdict);
    page.row("Claim", &certificate.claim);
    page.heading("Teardown");
    page.row(
        "Node",
        &format!("{} ({})", certificate.node.name, certificate.node.id),
    );
    page.row(
        "Tool",
        &format!("{} {}", certificate.tool.name, certificate.tool.version),
    );
    page.row(
        "Began, ended",
        &format!("{}   {}", domain.started, domain.finished),
    );
    page.heading("Parts, by their own certificates");
    for (number, part) in domain.parts.iter().enumerate() {
        if !page.has_room() {
            let left = domain.parts.len() - number;
            page.row("Further parts", &format!("{left}, see the JSON"));
            break;
        }
        let path = part.path.to_string_lossy();
        let what = part.volume.as_deref().unwrap_or(&path);
        page.row(
            &format!("Number {}", part.certificate),
            &format!("{what}: {}", part.verdict),
        );
    }
    page.heading("Kept");
    for kept in &domain.kept {
        page.row("", &format!("{}: {}", kept.what, kept.why));
    }
}

fn fill(page: &mut Page, certificate: &Certificate, report: &WipeReport) {
    let request = &report.request;
    page.heading("Verdict");
    page.row(
        "Volume",
        request
            .volume
            .as_deref()
            .unwrap_or(&request.path.to_string_lossy()),
    );
    page.row("Verdict", &report.verdict.to_string());
    page.row("Claim", &certificate.claim);
    page.heading("Wipe");
    page.row(
        "Node",
        &format!("{} ({})", certificate.node.name, certificate.node.id),
    );
    page.row(
        "Tool",
        &format!("{} {}", certificate.tool.name, certificate.tool.version),
    );
    page.row(
        "Method",
        &format!("{} - {}", request.algorithm, report.source),
    );
    page.row("Verification", &request.verify.to_string());
    page.row(
        "Began, ended",
        &format!("{}   {}", report.started, report.finished),
    );
    page.row("Interruptions", &report.interruptions.len().to_string());
    for (number, file) in report.files.iter().enumerate() {
        if !page.has_room() {
            let left = report.files.len() - number;
            page.row("Further files", &format!("{left}, see the JSON"));
            break;
        }
        file_rows(page, file);
    }
    page.heading("Notes");
    for note in &report.notes {
        page.row("", note);
    }
}

fn file_rows(page: &mut Page, file: &FileReport) {
    page.heading("File");
    page.row("Path", &file.path.to_string_lossy());
    let id = &file.identity;
    page.row(
        "Identity",
        &format!(
            "device {}:{}, inode {}, {} bytes",
            id.major, id.minor, id.inode, id.size
        ),
    );
    if let Some(system) = &file.environment.file_system {
        page.row(
            "File system",
            &format!("{} on {}", system.name, system.mount_point.display()),
        );
    }
    let devices: Vec<&str> = file
        .environment
        .devices
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    page.row("Devices", &devices.join(" < "));
    page.row(
        "Extents",
        &format!("{} with {} bytes", file.extent_count, file.extent_bytes),
    );
    page.row("Their digest", &file.extent_digest);
    let bytes: u64 = file.passes.iter().map(|pass| pass.bytes).sum();
    let spent: u64 = file.passes.iter().map(|pass| pass.milliseconds).sum();
    let rate = bytes / 1000 / spent.max(1);
    page.row(
        "Passes",
        &format!(
            "{}, {bytes} bytes in {spent} ms ({rate} MB/s)",
            file.passes.len()
        ),
    );
    if let Some(read) = &file.verification {
        let rate = read.bytes / 1000 / read.milliseconds.max(1);
        page.row(
            "Read back",
            &format!(
                "{} bytes in {} ms ({rate} MB/s)",
                read.bytes, read.milliseconds
            ),
        );
    }
    page.row("Failed ranges", &file.failure_count.to_string());
    let outcome = match &file.outcome {
        Outcome::Kept => "kept".to_owned(),
        Outcome::Rebuilt => "rebuilt as an empty image".to_owned(),
        Outcome::Removed => "removed".to_owned(),
        Outcome::LeftInPlace { because } => format!("left in place: {because}"),
    };
    page.row("Afterwards", &outcome);
    page.row("Verdict", &file.verdict.to_string());
}

fn footer(page: &mut Page, certificate: &Certificate) {
    page.y = MARGIN + 4.0 * LINE;
    let lines = [
        format!(
            "Number {} of its node; issued {}",
            certificate.sequence, certificate.issued
        ),
        format!(
            "Previous  {}",
            certificate.previous.as_deref().unwrap_or("none")
        ),
        format!("Key  {}", certificate.public_key),
        format!("Signature  {}", certificate.signature),
    ];
    for line in lines {
        page.text(b"F", 6.5, MARGIN, &line);
        page.y -= LINE * 0.8;
    }
}

fn assemble(content: Content, certificate: &Certificate) -> Vec<u8> {
    let [catalog, pages, page, plain, bold, stream, info] = [1, 2, 3, 4, 5, 6, 7].map(Ref::new);
    let mut pdf = Pdf::new();
    pdf.catalog(catalog).pages(pages);
    pdf.pages(pages).kids([page]).count(1);
    let mut sheet = pdf.page(page);
    sheet
        .parent(pages)
        .media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT))
        .contents(stream);
    sheet
        .resources()
        .fonts()
        .pair(Name(b"F"), plain)
        .pair(Name(b"B"), bold);
    sheet.finish();
    for (id, name) in [(plain, "Helvetica"), (bold, "Helvetica-Bold")] {
        let mut font = pdf.type1_font(id);
        font.base_font(Name(name.as_bytes()));
        font.encoding_predefined(Name(b"WinAnsiEncoding"));
    }
    pdf.stream(stream, &content.finish());
    let wiped = certificate.report.as_ref().map(|report| &report.id);
    let gone = certificate.domain.as_ref().map(|domain| &domain.id);
    let id = wiped.or(gone).map_or("", String::as_str);
    let title = format!("Certificate of wiping {}", id);
    pdf.document_info(info).title(pdf_writer::TextStr(&title));
    pdf.finish()
}

/// Latin-1, which WinAnsi agrees with outside 0x80 to 0x9f.
fn win_ansi(text: &str) -> Vec<u8> {
    text.chars()
        .map(|symbol| {
            let byte = u8::try_from(symbol as u32).ok();
            byte.filter(|byte| matches!(byte, 0x20..=0x7e | 0xa0..))
                .unwrap_or(b'?')
        })
        .collect()
}

/// Breaks at blanks where there are any, else anywhere.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        while word.len() > columns {
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            lines.push(word.drain(..columns).collect());
        }
        let length = line.chars().count();
        if length > 0 && length + 1 + word.len() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_and_kept_to_the_code_page() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(win_ansi("a\u{e4}\u{20ac}\n"), b"a\xe4??");
    }
}
