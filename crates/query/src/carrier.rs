//! Rows as array parameters: `SELECT … FROM unnest($1::int4[], $2::text[])`, in PostgreSQL's binary format, so that
//! values travel in the type that the source query gave them and the shard does the assignment casts.

use crate::metadata::{TEXT_IS_EXACT, inexact_types, text_is_not_exact};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use pgherd_model::ServerError;
use pgherd_shards::Backend;

/// How a source column travels.
#[derive(Debug, Clone)]
pub(crate) struct Carrier {
    /// the element's type in the array
    element: u32,
    /// the array's type
    array: u32,
    /// the array's type as SQL
    array_sql: String,
    /// CAST(u.cN AS …) around the element, where it travels as text
    cast: Option<String>,
    /// the format in which the source gives the values
    pub format: i16,
    /// the session's settings would change a value on its way
    inexact: bool,
}

const TEXT: u32 = 25;
const TEXT_ARRAY: u32 = 1009;
/// text, varchar, bpchar, name, "char": what text is assigned to without a cast
const TEXT_LIKE: [u32; 5] = [25, 1043, 1042, 19, 18];

/// A target column: its type, and the type as SQL.
#[derive(Debug, Clone)]
pub(crate) struct TargetType {
    /// its OID on the home shard
    pub oid: u32,
    /// as `format_type` writes it
    pub sql: String,
}

impl Carrier {
    /// For values of the gateway's own, as text.
    pub fn text() -> Self {
        Self {
            element: TEXT,
            array: TEXT_ARRAY,
            array_sql: "text[]".to_owned(),
            cast: None,
            format: 0,
            inexact: false,
        }
    }

    /// For values of a type of PostgreSQL's own that travel in binary, by the OIDs of the type and of its array.
    pub fn binary(element: u32, array: u32) -> Self {
        Self {
            element,
            array,
            array_sql: String::new(),
            cast: None,
            format: 1,
            inexact: false,
        }
    }

    /// Refuses what would change a value on its way.
    ///
    /// # Errors
    /// 0A000, with the settings that would help.
    pub fn check(carriers: &[Carrier]) -> Result<(), ServerError> {
        match carriers.iter().any(|c| c.inexact) {
            true => Err(text_is_not_exact()),
            false => Ok(()),
        }
    }

    /// The OID of the arrays' type.
    pub fn array(&self) -> u32 {
        self.array
    }

    /// The OID of the type in which the values travel.
    pub fn element(&self) -> u32 {
        self.element
    }

    /// The value as an expression, where `column` is the array's element.
    pub fn value_sql(&self, column: &str) -> String {
        match &self.cast {
            Some(cast) => format!("CAST({column} AS {cast})"),
            None => column.to_owned(),
        }
    }

    /// The array as an expression, sent as this parameter.
    pub fn array_sql(&self, number: usize) -> String {
        format!("${number}::{}", self.array_sql)
    }
}

/// The carriers for source columns of these types that go to these targets; asks the home shard for array types.
pub(crate) async fn carriers(
    home: &mut Backend,
    sources: &[u32],
    targets: &[TargetType],
) -> Result<Vec<Carrier>, ServerError> {
    let oids: Vec<_> = sources.iter().map(u32::to_string).collect();
    // Without a modifier, `format_type` still names types that take any length: bit and character would mean a length of 1.
    let sql = format!(
        "SELECT t.typarray::text, format_type(t.typarray, -1), format_type(t.oid, -1), \
         (t.oid < 16384 AND t.typarray <> 0 AND t.typtype = 'b' AND t.typcategory <> 'A' AND t.typsend <> 0 \
          AND t.typreceive <> 0 AND t.typname !~ '^reg')::text, \
         (t.typname ~ '^_?reg' OR {TEXT_IS_EXACT}::boolean)::text \
         FROM unnest('{{{}}}'::oid[]) WITH ORDINALITY s(oid, n) JOIN pg_catalog.pg_type t ON t.oid = s.oid ORDER BY n",
        oids.join(","),
    );
    let results = home.simple(&sql).await?;
    let unknown = || ServerError::internal("the home shard does not know the type of a column it described");
    let types = results.first().ok_or_else(unknown)?;
    let mut carriers = Vec::new();
    for (row, (source, target)) in sources.iter().zip(targets).enumerate() {
        let text = |column| types.text(row, column).ok_or_else(unknown);
        // A constant without a type: its text is read as the target's type.
        let unknown_constant = *source == TEXT && !TEXT_LIKE.contains(&target.oid);
        let direct = text(3)? == "true" && !unknown_constant;
        carriers.push(match direct {
            true => Carrier {
                element: *source,
                array: text(0)?.parse().map_err(|_| unknown())?,
                array_sql: text(1)?.to_owned(),
                cast: None,
                format: 1,
                inexact: false,
            },
            false => Carrier {
                element: TEXT,
                array: TEXT_ARRAY,
                array_sql: "text[]".to_owned(),
                cast: Some(if unknown_constant {
                    target.sql.clone()
                } else {
                    text(2)?.to_owned()
                }),
                format: 0,
                inexact: !unknown_constant && text(4)? != "true",
            },
        });
    }
    if carriers.iter().any(|carrier| carrier.inexact) {
        let inexact = inexact_types(home, sources).await?;
        for (carrier, source) in carriers.iter_mut().zip(sources) {
            carrier.inexact &= inexact.contains(source);
        }
    }
    Ok(carriers)
}

/// `SELECT u.c1, CAST(u.c2 AS t) FROM unnest($1::t[], …) AS u(c1, …)`; the first array is parameter `first`.
pub(crate) fn select_sql(carriers: &[Carrier], first: usize) -> String {
    let join = |f: &dyn Fn(usize, &Carrier) -> String| {
        let parts: Vec<_> = carriers.iter().enumerate().map(|(i, c)| f(i, c)).collect();
        parts.join(", ")
    };
    let columns = join(&|i, c| c.value_sql(&format!("u.c{i}")));
    let arrays = join(&|i, c| c.array_sql(first + i));
    let names = join(&|i, _| format!("c{i}"));
    format!("SELECT {columns} FROM unnest({arrays}) AS u({names})")
}

/// Values of all columns, collected for one statement.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    columns: Vec<Column>,
    /// rows collected
    pub rows: usize,
    /// bytes collected
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Column {
    /// length and bytes of each element, as in a binary array
    elements: BytesMut,
    nulls: bool,
}

impl Batch {
    /// For so many columns.
    pub fn new(columns: usize) -> Self {
        Self {
            columns: (0..columns).map(|_| Column::default()).collect(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Adds a row; values beyond the columns are left out.
    pub fn add<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>>) {
        for (column, value) in self.columns.iter_mut().zip(values) {
            match value {
                Some(value) => {
                    column.elements.put_i32(value.len() as i32);
                    column.elements.put_slice(value);
                    self.bytes += value.len();
                }
                None => {
                    column.elements.put_i32(-1);
                    column.nulls = true;
                }
            }
            self.bytes += 4;
        }
        self.rows += 1;
    }

    /// The rows divided into parts by their value in a column: `wanted` says which parts want it. NULLs are in none.
    pub fn divided(&self, column: usize, parts: usize, mut wanted: impl FnMut(&[u8], &mut Vec<usize>)) -> Vec<Batch> {
        let mut divided: Vec<Batch> = (0..parts).map(|_| Batch::new(self.columns.len())).collect();
        let mut elements: Vec<&[u8]> = self.columns.iter().map(|c| c.elements.as_ref()).collect();
        let mut values: Vec<Option<&[u8]>> = vec![None; elements.len()];
        let mut into = Vec::new();
        for _ in 0..self.rows {
            for (value, rest) in values.iter_mut().zip(&mut elements) {
                let length = rest.get_i32();
                // -1 is a NULL.
                *value = usize::try_from(length).ok().map(|length| {
                    let (value, behind) = rest.split_at(length);
                    *rest = behind;
                    value
                });
            }
            if let Some(value) = values[column] {
                into.clear();
                wanted(value, &mut into);
                for &part in &into {
                    divided[part].add(values.iter().copied());
                }
            }
        }
        divided
    }

    /// The parameters: types, and arrays as `array_send` writes them (dimensions, whether it has NULLs, element
    /// type, length, lower bound, elements). The batch is empty afterwards.
    pub fn take(&mut self, carriers: &[Carrier]) -> (Vec<u32>, Vec<Bytes>) {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let array = |(column, carrier): (&mut Column, &Carrier)| {
            let column = std::mem::take(column);
            let mut out = BytesMut::with_capacity(20 + column.elements.len());
            out.put_i32(1);
            out.put_i32(i32::from(column.nulls));
            out.put_u32(carrier.element);
            out.put_i32(rows as i32);
            out.put_i32(1);
            out.put_slice(&column.elements);
            (carrier.array, out.freeze())
        };
        self.columns.iter_mut().zip(carriers).map(array).unzip()
    }
}
