//! Names in a compiled Python file: those that its outermost code uses, which are imported when it is.
//!
//! A file is sixteen bytes, of which the first two are the version, and one marshalled object, a code object:
//! numbers, bytecode, constants, names, and more that is passed over (CPython, `Python/marshal.c`, `r_object`). Functions
//! are constants; what they name is needed when they are called, which mostly is not at the start.

/// Depth of objects in objects.
const MOST_DEPTH: usize = 64;
/// Objects of a file.
const MOST_OBJECTS: usize = 1 << 20;
/// Length of what precedes the object.
const HEADER: usize = 16;
/// From this version on code objects have the fields of CPython 3.11.
const FIELDS_OF_311: u16 = 3450;

/// What is kept of an object.
#[derive(Debug, Clone)]
enum Object<'a> {
    Text(&'a [u8]),
    Tuple(Vec<Object<'a>>),
    Code(Vec<Object<'a>>),
    Other,
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Objects that are referred to by number; texts only.
    known: Vec<Option<&'a [u8]>>,
    left: usize,
    is_new: bool,
}

/// Names, and names in constants, of the outermost code of a file; none where it is something else.
pub fn names(content: &[u8]) -> Vec<&[u8]> {
    let Some((header, rest)) = content.split_at_checked(HEADER) else { return Vec::new() };
    let version = u16::from_le_bytes([header[0], header[1]]);
    let mut reader = Reader { rest, known: Vec::new(), left: MOST_OBJECTS, is_new: version >= FIELDS_OF_311 };
    let mut names = Vec::new();
    if let Some(Object::Code(parts)) = reader.object(0, true) {
        parts.iter().for_each(|part| texts(part, &mut names));
    }
    names
}

fn texts<'a>(object: &Object<'a>, into: &mut Vec<&'a [u8]>) {
    match object {
        Object::Text(text) => into.push(text),
        Object::Tuple(parts) => parts.iter().for_each(|part| texts(part, into)),
        Object::Code(_) | Object::Other => {}
    }
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn length(&mut self) -> Option<usize> {
        self.number().map(|length| length as usize).filter(|length| *length <= self.rest.len())
    }

    /// The next object; of a code object the names and constants if they are to be kept.
    fn object(&mut self, depth: usize, keep: bool) -> Option<Object<'a>> {
        const IS_KNOWN: u8 = 0x80;
        self.left = self.left.checked_sub(1).filter(|_| depth < MOST_DEPTH)?;
        let code = self.byte()?;
        let place = (code & IS_KNOWN != 0).then(|| {
            self.known.push(None);
            self.known.len() - 1
        });
        let object = match code & !IS_KNOWN {
            b'0' | b'N' | b'F' | b'T' | b'S' | b'.' => Object::Other,
            b'i' => self.skip(4)?,
            b'I' | b'g' => self.skip(8)?,
            b'y' => self.skip(16)?,
            b'f' => {
                let length = self.byte()?;
                self.skip(length.into())?
            }
            b'x' => {
                for _ in 0..2 {
                    let length = self.byte()?;
                    self.skip(length.into())?;
                }
                Object::Other
            }
            b'l' => {
                let digits = self.number()?.cast_signed().unsigned_abs() as usize;
                self.skip(digits.checked_mul(2)?)?
            }
            b's' => {
                let length = self.length()?;
                self.skip(length)?
            }
            b'a' | b'A' | b'u' | b't' => {
                let length = self.length()?;
                Object::Text(self.bytes(length)?)
            }
            b'z' | b'Z' => {
                let length = self.byte()?;
                Object::Text(self.bytes(length.into())?)
            }
            b')' => {
                let count = self.byte()?;
                self.objects(count.into(), depth, keep)?
            }
            b'(' | b'[' | b'<' | b'>' => {
                let count = self.length()?;
                self.objects(count, depth, keep)?
            }
            b':' => self.objects(3, depth, false)?,
            b'{' => {
                while self.rest.first().is_some_and(|code| *code != b'0') {
                    self.objects(2, depth, false)?;
                }
                self.skip(1)?
            }
            b'r' => {
                let number = self.number()? as usize;
                self.known.get(number).copied().flatten().map_or(Object::Other, Object::Text)
            }
            b'c' => self.code(depth, keep)?,
            _ => return None,
        };
        if let (Some(place), Object::Text(text)) = (place, &object) {
            self.known[place] = Some(text);
        }
        Some(object)
    }

    fn skip(&mut self, count: usize) -> Option<Object<'a>> {
        self.bytes(count).map(|_| Object::Other)
    }

    fn objects(&mut self, count: usize, depth: usize, keep: bool) -> Option<Object<'a>> {
        let mut objects = Vec::new();
        for _ in 0..count {
            // Functions are among the constants, and what they name is not kept.
            let object = self.object(depth + 1, false)?;
            if keep || matches!(object, Object::Text(_)) {
                objects.push(object);
            }
        }
        Some(Object::Tuple(objects))
    }

    fn code(&mut self, depth: usize, keep: bool) -> Option<Object<'a>> {
        let (numbers, ends) = if self.is_new { (5, 2) } else { (6, 1) };
        self.bytes(numbers * 4)?;
        // Bytecode; constants; names.
        self.object(depth + 1, false)?;
        let constants = self.object(depth + 1, keep)?;
        let names = self.object(depth + 1, keep)?;
        // New: variables, their kinds, file, name, qualified name. Old: three kinds of variables, file, name.
        for _ in 0..5 {
            self.object(depth + 1, false)?;
        }
        self.bytes(4)?;
        // Lines, and with the new fields exceptions.
        for _ in 0..ends {
            self.object(depth + 1, false)?;
        }
        Some(if keep { Object::Code(vec![names, constants]) } else { Object::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&[b'Z' | 0x80, text.len() as u8], text.as_bytes()].concat()
    }

    fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
        [vec![b')', parts.len() as u8], parts.concat()].concat()
    }

    /// A code object as this version has it.
    fn code(is_new: bool, constants: &[Vec<u8>], names: &[Vec<u8>]) -> Vec<u8> {
        let empty = || vec![b's', 0, 0, 0, 0];
        let (numbers, ends) = if is_new { (5, 2) } else { (6, 1) };
        let fields = [empty(), tuple(constants), tuple(names)].concat();
        [vec![b'c'], vec![0; numbers * 4], fields, vec![empty(); 5].concat(), vec![0; 4], vec![empty(); ends].concat()]
            .concat()
    }

    fn file(version: u16, object: &[u8]) -> Vec<u8> {
        [&version.to_le_bytes(), &[0; HEADER - 2][..], object].concat()
    }

    #[test]
    fn the_outermost_code_counts_and_functions_do_not() {
        for (version, is_new) in [(3413, false), (3439, false), (3495, true), (3627, true)] {
            let function = code(is_new, &[text("inner constant")], &[text("later"), text("os")]);
            // A number, a long one, a dictionary, from which names are imported; `os` is known by its number.
            let constants = [
                vec![b'i', 0, 0, 0, 0],
                vec![b'l', 0xfe, 0xff, 0xff, 0xff, 1, 0, 2, 0],
                [b"{".to_vec(), text("key"), vec![b'N', b'0']].concat(),
                function,
                tuple(&[text("dumps"), text("loads")]),
            ];
            let names = [text("json"), vec![b'r', 3, 0, 0, 0]];
            let object = code(is_new, &constants, &names);
            let content = file(version, &object);
            assert_eq!(super::names(&content), [&b"json"[..], b"os", b"dumps", b"loads"], "{version}");
            for length in 0..content.len() {
                super::names(&content[..length]);
            }
        }
    }

    #[test]
    fn a_file_that_python_has_compiled() {
        let directory = tempfile::tempdir().unwrap();
        let source = "import json, os\nfrom a.b import c, d\ntry:\n    import e\nexcept ImportError:\n    e = None\nX = {1: (2.5, 3j, 1 << 70, b'', None, ...)}\ndef f(g=1):\n    import later\n";
        std::fs::write(directory.path().join("x.py"), source).unwrap();
        let code = "import py_compile; py_compile.compile('x.py', 'x.pyc')";
        let status = std::process::Command::new("python3").args(["-c", code]).current_dir(&directory).status();
        assert!(status.unwrap().success());
        let content = std::fs::read(directory.path().join("x.pyc")).unwrap();
        let found = names(&content);
        for (name, is_there) in [
            ("json", true),
            ("os", true),
            ("a.b", true),
            ("c", true),
            ("d", true),
            ("e", true),
            ("later", false),
            ("g", false),
        ] {
            assert_eq!(found.contains(&name.as_bytes()), is_there, "{name} {found:?}");
        }
    }

    #[test]
    fn anything_is_taken_and_bounded() {
        let deep = file(3495, &[b')', 1].repeat(100_000));
        let wide = file(3495, &[&b"("[..], &[0xff; 4]].concat());
        let many = file(3495, &[&[b'(', 0, 0, 0x10, 0][..], &vec![b'N'; 1 << 20]].concat());
        for content in [deep, wide, many, file(0, b""), vec![0xff; 100], Vec::new()] {
            assert!(names(&content).is_empty());
        }
    }
}
