//! KQL's aggregates: `dcount`, `percentile`, `stdev`, `variance`.

use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int64Array, RecordBatch};
use deltalake::arrow::compute::cast;
use deltalake::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema};
use deltalake::arrow::row::{RowConverter, SortField};
use deltalake::datafusion::common::{DataFusionError, Result};
use deltalake::datafusion::functions_aggregate::stddev::stddev_udaf;
use deltalake::datafusion::functions_aggregate::variance::var_samp_udaf;
use deltalake::datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use deltalake::datafusion::logical_expr::utils::format_state_name;
use deltalake::datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use deltalake::datafusion::physical_plan::PhysicalExpr;
use deltalake::datafusion::scalar::ScalarValue;
use spanwatch_kql::dcount::Card;
use spanwatch_kql::stats;

use super::kql::refused;
use super::series::list_type;

/// All aggregates of this module.
pub(crate) fn aggregates() -> [AggregateUDF; 4] {
    // The engine's own are those of a sample, as KQL's: only the names differ.
    let stdev = stddev_udaf().as_ref().clone().with_aliases(["stdev"]);
    let variance = var_samp_udaf().as_ref().clone().with_aliases(["variance"]);
    let signature = Signature::variadic_any(Volatility::Immutable);
    let percentile = AggregateUDF::new_from_impl(Percentile { signature: signature.clone() });
    [AggregateUDF::new_from_impl(Dcount { signature }), percentile, stdev, variance]
}

/// The value of an argument that must be the same for all rows.
pub(crate) fn constant(function: &str, what: &str, argument: &Arc<dyn PhysicalExpr>) -> Result<ScalarValue> {
    match argument.evaluate(&RecordBatch::new_empty(Arc::new(Schema::empty()))) {
        Ok(ColumnarValue::Scalar(value)) => Ok(value),
        _ => Err(refused(function, &format!("{what} must be the same for all rows, not a column"))),
    }
}

/// Bytes of a state that are not what this version writes.
pub(crate) fn spoilt(function: &str) -> DataFusionError {
    DataFusionError::Internal(format!("{function}: the state of another part of the query is no such state"))
}

/// `dcount(value)`: how many different values there are, of any type; exactly up to 1,000, then within about 1 %.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Dcount {
    signature: Signature,
}

impl AggregateUDFImpl for Dcount {
    fn name(&self) -> &str {
        "dcount"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [_] => Ok(DataType::Int64),
            _ => Err(refused(self.name(), "takes one value; for example dcount(destinationIPAddress)")),
        }
    }

    fn is_nullable(&self) -> bool {
        false
    }

    fn default_value(&self, _: &DataType) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(Some(0)))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "values"), DataType::Binary, true))])
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneCount(Counts::default())))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Counts::default()))
    }
}

/// A counter per group.
#[derive(Debug, Default)]
struct Counts {
    cards: Vec<Card>,
    /// What the counters take beside themselves.
    bytes: usize,
}

impl Counts {
    fn change(&mut self, group: usize, change: impl FnOnce(&mut Card)) {
        let card = &mut self.cards[group];
        let before = card.size();
        change(card);
        self.bytes = self.bytes + card.size() - before;
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<Card> {
        let taken = emit_to.take_needed(&mut self.cards);
        self.bytes -= taken.iter().map(Card::size).sum::<usize>();
        taken
    }
}

/// Calls `each` with every row that is not NULL and passes the filter, and the bytes that stand for its value.
pub(crate) fn for_each_value(values: &ArrayRef, filter: Option<&BooleanArray>, mut each: impl FnMut(usize, &[u8])) -> Result<()> {
    let rows = RowConverter::new(vec![SortField::new(values.data_type().clone())])?;
    let rows = rows.convert_columns(std::slice::from_ref(values))?;
    for (row, bytes) in rows.iter().enumerate() {
        let passes = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        if passes && values.is_valid(row) {
            each(row, bytes.as_ref());
        }
    }
    Ok(())
}

impl GroupsAccumulator for Counts {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        groups_count: usize,
    ) -> Result<()> {
        self.cards.resize_with(groups_count, Card::default);
        for_each_value(&values[0], filter, |row, bytes| {
            self.change(groups[row], |card| {
                card.insert_bytes(bytes);
            });
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], groups_count: usize) -> Result<()> {
        self.cards.resize_with(groups_count, Card::default);
        for (state, &group) in states[0].as_binary::<i32>().iter().zip(groups) {
            if let Some(state) = state {
                let theirs = Card::from_bytes(state).ok_or_else(|| spoilt("dcount"))?;
                self.change(group, |card| card.merge(&theirs));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let counts = self.take(emit_to).into_iter().map(|card| card.count().cast_signed());
        Ok(Arc::new(Int64Array::from_iter_values(counts)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let states = self.take(emit_to).into_iter().map(|card| card.to_bytes());
        Ok(vec![Arc::new(BinaryArray::from_iter_values(states))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut states: Vec<Option<Vec<u8>>> = vec![None; values[0].len()];
        for_each_value(&values[0], filter, |row, bytes| {
            let mut card = Card::default();
            card.insert_bytes(bytes);
            states[row] = Some(card.to_bytes());
        })?;
        Ok(vec![Arc::new(states.iter().map(Option::as_deref).collect::<BinaryArray>())])
    }

    fn size(&self) -> usize {
        self.cards.capacity() * size_of::<Card>() + self.bytes
    }
}

/// The same for a query without groups.
#[derive(Debug)]
struct OneCount(Counts);

impl Accumulator for OneCount {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        GroupsAccumulator::update_batch(&mut self.0, values, &vec![0; values[0].len()], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        GroupsAccumulator::merge_batch(&mut self.0, states, &vec![0; states[0].len()], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(Some(self.0.cards.first().map_or(0, Card::count).cast_signed())))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Binary(self.0.cards.first().map(Card::to_bytes))])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.size()
    }
}

/// `percentile(value, percent)`: interpolated linearly. It keeps all values.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Percentile {
    signature: Signature,
}

impl AggregateUDFImpl for Percentile {
    fn name(&self) -> &str {
        "percentile"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [value, percent] if value.is_numeric() && percent.is_numeric() => Ok(DataType::Float64),
            _ => Err(refused(self.name(), "takes a number and a percentage; for example percentile(octetDeltaCount, 95)")),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "values"), list_type(DataType::Float64), true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return Err(refused(self.name(), "does not take DISTINCT"));
        }
        let percent = args.exprs.get(1).ok_or_else(|| refused(self.name(), "takes a number and a percentage"))?;
        let percent = constant(self.name(), "the percentage", percent)?.cast_to(&DataType::Float64)?;
        match percent {
            ScalarValue::Float64(Some(percent)) if (0.0..=100.0).contains(&percent) => {
                Ok(Box::new(Values { percent, values: Vec::new() }))
            }
            other => Err(refused(self.name(), &format!("the percentage must be between 0 and 100, not {other}"))),
        }
    }
}

#[derive(Debug)]
struct Values {
    percent: f64,
    values: Vec<f64>,
}

impl Values {
    fn extend(&mut self, values: &ArrayRef) -> Result<()> {
        let values = cast(values, &DataType::Float64)?;
        self.values.extend(values.as_primitive::<Float64Type>().iter().flatten());
        Ok(())
    }
}

impl Accumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.extend(&values[0])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        states[0].as_list::<i32>().iter().flatten().try_for_each(|values| self.extend(&values))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(stats::percentile(&self.values, self.percent)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<ScalarValue> = self.values.drain(..).map(|value| ScalarValue::Float64(Some(value))).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &DataType::Float64))])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.values.capacity() * size_of::<f64>()
    }
}
