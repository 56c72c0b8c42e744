//! The XML layer: bounds, errors with places, metadata and XPath.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod common;

use cenote_model::xpath::{Selection, select};
use cenote_model::{Error, ReadOptions, parse};
use proptest::prelude::*;

fn fails(text: &str) -> Error {
    parse(text, &ReadOptions::default()).unwrap_err()
}

#[test]
fn document_types_and_entities_are_refused_by_name() {
    let mut bomb =
        String::from("<?xml version='1.0'?>\n<!DOCTYPE pool [\n<!ENTITY a 'aaaaaaaaaa'>\n");
    for (name, inner) in [("b", "a"), ("c", "b"), ("d", "c")] {
        bomb += &format!("<!ENTITY {name} '{}'>\n", format!("&{inner};").repeat(10));
    }
    bomb += "]>\n<pool>&d;</pool>";
    assert_eq!(fails(&bomb), Error::DocumentType { line: 2, column: 1 });
    assert!(fails(&bomb).to_string().contains("entities are refused"));
    let message = fails("<pool>\n &x;</pool>").to_string();
    assert!(
        message.starts_with("line 2, column 2: ") && message.contains("entity"),
        "{message}"
    );
}

#[test]
fn size_depth_and_numbers_are_bounded() {
    let limit = ReadOptions::default().max_bytes;
    let big = format!("<a>{}</a>", "x".repeat(limit));
    assert!(matches!(fails(&big), Error::TooLarge { size, .. } if size > limit));
    let deep = "<a>".repeat(1_000_000);
    assert!(
        matches!(fails(&deep), Error::TooMany { what: "levels of nesting", column, .. } if column > 128)
    );
    let wide = format!("<a>{}</a>", "<b/>".repeat(300_000));
    assert!(matches!(
        fails(&wide),
        Error::TooMany {
            what: "elements and texts",
            ..
        }
    ));
    let attributes: String = (0..100_000).map(|n| format!(" a{n}=''")).collect();
    let attributes = format!("<a{attributes}/>");
    assert!(matches!(
        fails(&attributes),
        Error::TooMany {
            what: "attributes on one element",
            ..
        }
    ));
    let namespaces: String = (0..1000)
        .map(|n| format!("<p{n}:a xmlns:p{n}='u'/>"))
        .collect();
    assert!(matches!(
        fails(&format!("<a>{namespaces}</a>")),
        Error::TooMany {
            what: "namespace declarations",
            ..
        }
    ));
    // Elements beside each other are not nested, nor is what comments and CDATA hold.
    let flat = format!(
        "<a>{}</a>",
        "<b></b><!-- <x> --><![CDATA[<x>]]>".repeat(1000)
    );
    assert!(parse(&flat, &ReadOptions::default()).is_ok());
}

#[test]
fn errors_of_form_say_line_and_column() {
    for (text, place) in [
        ("<a>\n<b>\n</a>", "line 3, column "),
        ("<a>\n  <b c=d/>\n</a>", "line 2, column "),
        ("<a", "line 1, column "),
        ("<a>\n", "line 2, column 1: "),
        ("<a/><b/>", "line 1, column "),
        ("<a b='1' b='2'/>", "line 1, column "),
        ("<a>\n\u{1}</a>", "line 2, column 1: "),
        ("<a x:b='1'/>", "line 1, column "),
    ] {
        let message = fails(text).to_string();
        assert!(message.starts_with(place), "{text:?}: {message}");
    }
}

#[test]
fn layout_and_escapes_are_stable() {
    let text = "<a b='&lt;&amp;&apos;&quot;&#10;&#9;&#13;é'>\n  <c>x &lt; y &amp;&amp; z&#13;</c>\n  <d/>\n</a>\n";
    let element = parse(text, &ReadOptions::default()).unwrap();
    assert_eq!(element.to_string(), text);
    assert_eq!(element.get("b"), Some("<&'\"\n\t\ré"));
    let messy = "<?xml version='1.0'?><!-- c --><a   b = \"&lt;&amp;'&quot;&#10;&#9;&#13;é\" ><c>x <![CDATA[< y && z]]>&#13;</c><!-- d --><d></d></a>";
    assert_eq!(
        parse(messy, &ReadOptions::default()).unwrap().to_string(),
        text
    );
}

#[test]
fn metadata_keeps_everything_and_its_namespaces() {
    let text = "<domain xmlns:app='http://example.com/app' xmlns:x='urn:x'>\n  <metadata>\n    \
                <app:info note=\"it's\">\n\t\t<app:a>1</app:a> mixed <!-- kept --><?do it?>\n    </app:info>\n  \
                </metadata>\n</domain>\n";
    let element = parse(text, &ReadOptions::default()).unwrap();
    let metadata = element.child("metadata").unwrap();
    let info = metadata.child("app:info").unwrap();
    assert_eq!(
        info.get("xmlns:app"),
        Some("http://example.com/app"),
        "carried along"
    );
    assert_eq!(info.get("xmlns:x"), None, "not used there");
    let alone = info.to_string();
    let body = "\n\t\t<app:a>1</app:a> mixed <!-- kept --><?do it?>\n    ";
    assert!(alone.contains(body), "{alone}");
    let printed = element.to_string();
    assert!(printed.contains(body), "{printed}");
    assert_eq!(parse(&printed, &ReadOptions::default()).unwrap(), element);
}

fn xpath(text: &str, expression: &str) -> String {
    let root = parse(text, &ReadOptions::default()).unwrap();
    select(&root, expression).unwrap().print()
}

#[test]
fn xpath_selects_as_virsh_users_expect() {
    let text = "<domain type='kvm'><name>g</name><devices><disk type='file'><target dev='vda'/></disk>\
                <disk type='block'><target dev='hdc' bus='ide'/></disk></devices>\
                <metadata><a:b xmlns:a='urn:a' c='1'/></metadata></domain>";
    for (expression, expected) in [
        ("//disk/target/@dev", "vda\nhdc\n"),
        ("//disk[@type='block']/target/@dev", "hdc\n"),
        ("/domain/name/text()", "g\n"),
        ("//disk[2]/target", "<target dev='hdc' bus='ide'/>\n"),
        ("//nosuch", ""),
        ("count(//disk)", "2\n"),
        ("string(//name)", "g\n"),
        (
            "//disk[target/@bus='ide' or @type='network']/@type",
            "block\n",
        ),
        (
            "//target[starts-with(@dev, 'vd')]/@dev | //name/text()",
            "g\nvda\n",
        ),
        ("//a:b/@c", "1\n"),
        ("//*[local-name()='b']/@c", "1\n"),
        ("//disk[last()]/preceding-sibling::disk/@type", "file\n"),
        ("boolean(//disk)", "true\n"),
    ] {
        assert_eq!(xpath(text, expression), expected, "{expression}");
    }
    let root = parse(text, &ReadOptions::default()).unwrap();
    assert_eq!(
        select(&root, "//target").unwrap().print_wrapped(),
        "<nodes>\n  <target dev='vda'/>\n  <target dev='hdc' bus='ide'/>\n</nodes>\n"
    );
    assert_eq!(select(&root, "//x").unwrap(), Selection::Nodes(vec![]));
    for expression in ["//[", "", "//disk[", "nosuch()", "$x"] {
        let error = select(&root, expression).unwrap_err();
        assert!(error.to_string().starts_with("XPath '"), "{error}");
    }
    assert!(select(&root, &"(".repeat(1024)).is_err());
    assert!(select(&root, &"-".repeat(1000)).is_err());
    assert!(select(&root, &"a[".repeat(512)).is_err());
    assert!(select(&root, &"/".repeat(5000)).is_err());
    let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(select(&root, &nested(32)).unwrap().print(), "1\n");
    assert!(select(&root, &nested(33)).is_err());
    let long = format!("count(//*{})", "/..".repeat(300));
    assert_eq!(select(&root, &long).unwrap().print(), "0\n");
}

#[test]
fn xpath_agrees_with_xmllint() {
    let text = "<d><n>g</n><v><k t='f'><g d='a'/></k><k t='b'><g d='c' b='i'/></k><k/></v></d>";
    for expression in [
        "count(//k)",
        "string(//k[2]/g/@d)",
        "count(//k[@t])",
        "count(//k[not(g)])",
        "sum(//k[position() < 2])",
        "concat(//n, '-', name(//*[3]))",
        "count(//g/ancestor::*)",
        "count(//k/following::*)",
        "substring-after('a=b', '=')",
        "1 div 3 > 0.3 and 2 mod 2 = 0",
        "normalize-space('  a  b ')",
        "translate('abc', 'ab', 'x')",
        "string-length(//n) + count(//@*)",
    ] {
        let output = common::run(
            "xmllint",
            "libxml2-utils",
            &["--xpath", expression, "-"],
            text,
        );
        let expected = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            xpath(text, expression).trim(),
            expected.trim(),
            "{expression}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_tree_or_an_error(text in "[<>/a-c:='\"&;!?\\[\\]# \n-]{0,80}") {
        if let Ok(element) = parse(&text, &ReadOptions::default()) {
            let printed = element.to_string();
            prop_assert_eq!(parse(&printed, &ReadOptions::default()).unwrap().to_string(), printed);
        }
    }

    #[test]
    fn any_value_survives(value in "\\PC{0,20}[\n\t\r]?\\PC{0,5}") {
        let element = cenote_model::Element::new("a")
            .with("b", value.clone())
            .with_child(cenote_model::Element::new("c").with_text(value.clone()));
        let again = parse(&element.to_string(), &ReadOptions::default()).unwrap();
        prop_assert_eq!(again.get("b"), Some(value.as_str()));
        prop_assert_eq!(again.child("c").unwrap().text(), value);
    }

    #[test]
    fn any_expression_is_evaluated_or_refused(expression in "[a-c/@\\[\\]().*|=' 0-9$:<-]{0,60}") {
        let root = parse("<a b='1'><c>2</c></a>", &ReadOptions::default()).unwrap();
        let _ = select(&root, &expression);
    }
}
