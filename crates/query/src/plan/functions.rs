//! What DataFusion runs of ours: it groups, joins and sorts by keys; rows are opaque to it, and these functions turn
//! them into results.

use super::finish::{Finish, Group};
use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use pgherd_model::ServerError;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

fn external(error: ServerError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn binary() -> Signature {
    Signature::exact(vec![DataType::Binary], Volatility::Immutable)
}

/// `finish(row)`: all rows of a group become one result with its sort key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FinishGroup {
    signature: Signature,
    finish: Arc<Finish>,
}

impl FinishGroup {
    pub fn new(finish: Arc<Finish>) -> Self {
        Self {
            signature: binary(),
            finish,
        }
    }
}

impl Hash for FinishGroup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.finish.columns.hash(state);
    }
}

impl AggregateUDFImpl for FinishGroup {
    fn name(&self) -> &str {
        "finish_group"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(GroupAccumulator {
            group: self.finish.group(),
            finish: self.finish.clone(),
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![
            Field::new(format!("{}[partial]", args.name), DataType::Binary, true).into(),
        ])
    }
}

#[derive(Debug)]
struct GroupAccumulator {
    group: Group,
    finish: Arc<Finish>,
}

impl Accumulator for GroupAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for row in values[0].as_binary::<i32>().iter().flatten() {
            self.group.add(&self.finish, row).map_err(external)?;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Binary(
            self.group.partial(&self.finish).map_err(external)?,
        )])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Binary(Some(
            self.group.sortable(&self.finish).map_err(external)?,
        )))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.group.size()
    }
}

/// `finish_row(row)`: a row becomes a result with its sort key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FinishRow {
    signature: Signature,
    finish: Arc<Finish>,
}

impl FinishRow {
    pub fn new(finish: Arc<Finish>) -> Self {
        Self {
            signature: binary(),
            finish,
        }
    }
}

impl Hash for FinishRow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.finish.columns.hash(state);
    }
}

impl ScalarUDFImpl for FinishRow {
    fn name(&self) -> &str {
        "finish_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.args[0].to_array(args.number_rows)?;
        let rows = rows.as_binary::<i32>();
        let mut out = BinaryBuilder::with_capacity(rows.len(), rows.value_data().len());
        for row in rows.iter() {
            let mut group = self.finish.group();
            if let Some(row) = row {
                group.add(&self.finish, row).map_err(external)?;
            }
            out.append_value(group.sortable(&self.finish).map_err(external)?);
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}

/// `join_rows(left, right)`: the fields of both rows, NULLs for a side that is not there.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct JoinRows {
    signature: Signature,
    /// columns of each side
    pub widths: (usize, usize),
}

impl JoinRows {
    pub fn new(left: usize, right: usize) -> Self {
        Self {
            signature: Signature::exact(vec![DataType::Binary, DataType::Binary], Volatility::Immutable),
            widths: (left, right),
        }
    }

    fn join(&self, left: Option<&[u8]>, right: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::with_capacity(left.map_or(8, <[u8]>::len) + right.map_or(8, <[u8]>::len));
        out.extend_from_slice(b"D\0\0\0\0");
        out.extend_from_slice(&((self.widths.0 + self.widths.1) as u16).to_be_bytes());
        for (side, width) in [(left, self.widths.0), (right, self.widths.1)] {
            match side {
                Some(message) => out.extend_from_slice(&message[7..]),
                None => out.extend(std::iter::repeat_n(0xff, 4 * width)),
            }
        }
        let length = (out.len() - 1) as u32;
        out[1..5].copy_from_slice(&length.to_be_bytes());
        out
    }
}

impl ScalarUDFImpl for JoinRows {
    fn name(&self) -> &str {
        "join_rows"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (left, right) = (
            args.args[0].to_array(args.number_rows)?,
            args.args[1].to_array(args.number_rows)?,
        );
        let (left, right) = (left.as_binary::<i32>(), right.as_binary::<i32>());
        let mut out = BinaryBuilder::with_capacity(left.len(), left.value_data().len() + right.value_data().len());
        for (left, right) in left.iter().zip(right.iter()) {
            out.append_value(self.join(left, right));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}
