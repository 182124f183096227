//! The filters of `List`: text that containerd and its clients send, and whether a snapshot passes.
//!
//! ```text
//! filter    = selector { "," selector }          all of them
//! selector  = field { "." field } [ operator value ]   without operator: the field is there
//! field     = word | "quoted"
//! operator  = "==" | "!=" | "~="
//! value     = "quoted" | /quoted/ | |quoted| | characters up to the next comma
//! ```
//! Fields are `name`, `parent`, `kind` and `labels.KEY`; a field that nobody knows is absent from every snapshot. Several filters
//! are alternatives, none is everything. Quoted text has the escapes of Go.

use crate::snapshots::Info;

/// Longest filter that is read, in bytes; two labels of the longest kind fit.
const MAX_FILTER: usize = 16 << 10;

/// Why a filter can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?} can't be read at byte {position}: {why}")]
pub struct FilterError {
    filter: String,
    position: usize,
    why: &'static str,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    Matches(regex::Regex),
}

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

/// Alternatives of what a snapshot has to be.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    alternatives: Vec<Vec<Selector>>,
}

impl Filter {
    /// Reads filters; an empty list, or an empty one in it, lets everything pass.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        if filters.iter().any(|filter| filter.is_empty()) {
            return Ok(Self::default());
        }
        Ok(Self { alternatives: filters.iter().map(|filter| parse(filter)).collect::<Result<_, _>>()? })
    }

    /// Does this snapshot pass?
    pub fn matches(&self, info: &Info) -> bool {
        self.alternatives.is_empty()
            || self.alternatives.iter().any(|selectors| selectors.iter().all(|selector| selector.matches(info)))
    }

    /// A label and its value without which nothing passes, for the index of labels: from the one alternative, if it has one.
    pub fn required_label(&self) -> Option<(&str, &str)> {
        let [selectors] = self.alternatives.as_slice() else { return None };
        selectors.iter().find_map(|selector| match (selector.path.as_slice(), &selector.test) {
            ([labels, key], Test::Equal(value)) if labels == "labels" && !value.is_empty() => {
                Some((key.as_str(), value.as_str()))
            }
            _ => None,
        })
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = self.value(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Unequal(unwanted) => value != Some(unwanted),
            Test::Matches(expression) => value.is_some_and(|value| expression.is_match(value)),
        }
    }

    /// The field's value, nothing if it is absent. A snapshot without a parent has an empty one, as containerd's clients expect.
    fn value<'a>(&self, info: &'a Info) -> Option<&'a str> {
        match self.path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["name"] => Some(&info.name),
            ["parent"] => Some(info.parent.as_deref().unwrap_or_default()),
            ["kind"] => Some(info.kind.as_str()),
            // A key with dots may come unquoted.
            ["labels", key @ ..] if !key.is_empty() => info.labels.get(&key.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

fn parse(filter: &str) -> Result<Vec<Selector>, FilterError> {
    let mut parser = Parser { text: filter, position: 0 };
    if filter.len() > MAX_FILTER {
        return Err(FilterError {
            filter: format!("{}…", &filter[..filter.floor_char_boundary(100)]),
            position: MAX_FILTER,
            why: "it is too long",
        });
    }
    let mut selectors = vec![parser.selector()?];
    while parser.skip(",") {
        selectors.push(parser.selector()?);
    }
    if parser.rest().is_empty() { Ok(selectors) } else { Err(parser.error("a comma or the end should be here")) }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn error(&self, why: &'static str) -> FilterError {
        FilterError { filter: self.text.to_owned(), position: self.position, why }
    }

    fn skip(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.skip(".") {
            path.push(self.field()?);
        }
        let test = if self.skip("==") {
            Test::Equal(self.value(false)?)
        } else if self.skip("!=") {
            Test::Unequal(self.value(false)?)
        } else if self.skip("~=") {
            let position = self.position;
            let value = self.value(true)?;
            let expression = regex::RegexBuilder::new(&value).size_limit(1 << 20).build();
            Test::Matches(expression.map_err(|_| FilterError {
                filter: self.text.to_owned(),
                position,
                why: "this is no regular expression, or one that is too large",
            })?)
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let end = self.rest().find(|c| !word(c)).unwrap_or(self.rest().len());
        if end == 0 {
            return Err(self.error("the name of a field should be here"));
        }
        let field = self.rest()[..end].to_owned();
        self.position += end;
        Ok(field)
    }

    fn value(&mut self, expression: bool) -> Result<String, FilterError> {
        match self.rest().chars().next() {
            Some('"') => self.quoted(),
            Some(delimiter @ ('/' | '|')) if expression => self.delimited(delimiter),
            _ => {
                let end = self.rest().find(',').unwrap_or(self.rest().len());
                let value = self.rest()[..end].to_owned();
                self.position += end;
                Ok(value)
            }
        }
    }

    /// Text between slashes or pipes, in which a backslash keeps only the delimiter from ending it.
    fn delimited(&mut self, delimiter: char) -> Result<String, FilterError> {
        let mut value = String::new();
        let mut characters = self.rest().char_indices().skip(1).peekable();
        while let Some((at, c)) = characters.next() {
            if c == delimiter {
                self.position += at + 1;
                return Ok(value);
            }
            if c == '\\' && characters.peek().is_some_and(|(_, next)| *next == delimiter) {
                value.push(delimiter);
                characters.next();
            } else {
                value.push(c);
            }
        }
        Err(self.error("the text that begins here does not end"))
    }

    /// Text in double quotes.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let mut value = Vec::new();
        let mut characters = self.rest().char_indices().skip(1);
        let mut utf8 = [0; 4];
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.position += at + 1;
                    return String::from_utf8(value).map_err(|_| self.error("the text before this is not UTF-8"));
                }
                '\\' => {
                    let (_, escape) =
                        characters.next().ok_or_else(|| self.error("the text that begins here does not end"))?;
                    let mut number = |first: Option<char>, digits: usize, radix: u32| {
                        let missing = digits - usize::from(first.is_some());
                        let text: String =
                            first.into_iter().chain(characters.by_ref().take(missing).map(|(_, c)| c)).collect();
                        let whole = text.len() == digits && text.bytes().all(|b| b.is_ascii_alphanumeric());
                        whole.then(|| u32::from_str_radix(&text, radix).ok()).flatten()
                    };
                    let escaped = match escape {
                        'a' => Some(7),
                        'b' => Some(8),
                        'f' => Some(12),
                        'n' => Some(10),
                        'r' => Some(13),
                        't' => Some(9),
                        'v' => Some(11),
                        '\\' | '"' | '\'' => Some(escape as u32),
                        'x' => number(None, 2, 16),
                        '0'..='7' => number(Some(escape), 3, 8).filter(|byte| *byte < 256),
                        'u' => number(None, 4, 16),
                        'U' => number(None, 8, 16),
                        _ => None,
                    };
                    let escaped =
                        escaped.ok_or_else(|| self.error("an escape in the text that begins here is none"))?;
                    // \x and octal escapes are bytes, the others characters.
                    match u8::try_from(escaped) {
                        Ok(byte) if matches!(escape, 'x' | '0'..='7') => value.push(byte),
                        _ => {
                            let c = char::from_u32(escaped)
                                .ok_or_else(|| self.error("an escape in the text that begins here is no character"))?;
                            value.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                        }
                    }
                }
                c => value.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
            }
        }
        Err(self.error("the text that begins here does not end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::Kind;

    fn info() -> Info {
        Info {
            name: "default/3/sha256:aa".into(),
            parent: Some("default/2/base".into()),
            kind: Kind::Committed,
            created: 0,
            updated: 0,
            labels: [("containerd.io/snapshot.ref", "sha256:aa"), ("odd \"key\"", "ü,\n"), ("empty", "")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        Filter::parse(&filters).unwrap_or_else(|error| panic!("{error}")).matches(&info())
    }

    #[test]
    fn filters_select_by_every_field_and_operator() {
        let cases: &[(&[&str], bool)] = &[
            (&[], true),
            (&[""], true),
            (&["name==default/3/sha256:aa"], true),
            (&["name==other"], false),
            (&["name==other", "kind==committed"], true),
            (&["kind==committed,name==other"], false),
            (&["kind==committed,parent==\"default/2/base\""], true),
            (&["kind!=active"], true),
            (&["parent==\"\""], false),
            (&["parent"], true),
            (&["labels.\"containerd.io/snapshot.ref\"==\"sha256:aa\",parent==\"default/2/base\""], true),
            (&["labels.\"containerd.io/snapshot.ref\"==sha256:aa,parent==default/2/other"], false),
            (&["labels.containerd"], false),
            (&["labels.absent"], false),
            (&["labels.absent!=x"], true),
            (&["labels.absent==\"\""], false),
            (&["labels.empty==\"\""], true),
            (&["labels.empty"], true),
            (&["labels.\"odd \\\"key\\\"\"==\"\\u00fc,\\n\""], true),
            (&["labels.\"odd \\\"key\\\"\"==\"\\xc3\\xbc,\\012\""], true),
            (&["name~=/^default\\/[0-9]+\\//"], true),
            (&["name~=|sha256:b|"], false),
            (&["name~=\"^default/3\""], true),
            (&["unknown==x"], false),
            (&["unknown!=x"], true),
        ];
        for (filters, expected) in cases {
            assert_eq!(passes(filters), *expected, "{filters:?}");
        }
    }

    #[test]
    fn a_snapshot_without_a_parent_has_an_empty_one() {
        let base = Info { parent: None, ..info() };
        let filter = Filter::parse(&["parent==\"\"".into()]).unwrap();
        assert!(filter.matches(&base) && !filter.matches(&info()));
    }

    #[test]
    fn what_can_t_be_read_is_refused_with_its_place() {
        for filter in [
            "==x",
            "name==\"x",
            "name==x,",
            "name=x",
            "name~=(",
            "name==\"\\q\"",
            "labels.\"x",
            "name~=/x",
            "name==\"\\xff\"",
        ] {
            let error = Filter::parse(&[filter.to_owned()]).expect_err(filter);
            assert!(error.to_string().contains(" at byte "), "{error}");
        }
        assert!(Filter::parse(&["x".repeat(MAX_FILTER + 1)]).is_err());
    }

    #[test]
    fn the_label_of_the_remote_contract_goes_through_the_index() {
        let parse = |text: &str| Filter::parse(&[text.to_owned()]).unwrap();
        let contract = parse("labels.\"containerd.io/snapshot.ref\"==sha256:aa,parent==\"\"");
        assert_eq!(contract.required_label(), Some(("containerd.io/snapshot.ref", "sha256:aa")));
        assert_eq!(parse("labels.a!=b").required_label(), None);
        assert_eq!(parse("kind==active").required_label(), None);
    }
}
