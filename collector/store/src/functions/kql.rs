//! KQL's functions of single values, and what all of KQL's functions have in common.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array};
use deltalake::arrow::compute::cast;
use deltalake::arrow::datatypes::{
    DataType, Float64Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use deltalake::datafusion::common::{DataFusionError, Result};
use deltalake::datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use deltalake::datafusion::scalar::ScalarValue;
use spanwatch_common::net::Address;
use spanwatch_kql::{ipv4, time};

/// Nanoseconds of a day of 24 hours.
const DAY_NANOS: i64 = 86_400_000_000_000;

/// All functions of this module.
pub(crate) fn functions() -> [ScalarUDF; 3] {
    [bin(), ipv4_is_private(), ipv4_is_in_range()].map(ScalarUDF::from)
}

/// A function of KQL: what it takes, what it gives, and how.
///
/// Mistakes are sentences; the name of the function goes before them.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// The types that arguments of these types are cast to.
    pub(crate) takes: Box<dyn Fn(&[DataType]) -> Result<Vec<DataType>, String> + Send + Sync>,
    /// The type of the result, from the types that were cast to.
    pub(crate) gives: Box<dyn Fn(&[DataType]) -> DataType + Send + Sync>,
    /// The results, from arguments of equal length.
    pub(crate) body: Box<dyn Fn(&[ArrayRef]) -> Result<ArrayRef, String> + Send + Sync>,
    pub(crate) signature: Signature,
}

impl Function {
    /// The signature of any: types are judged by [`takes`](Self::takes), whose sentences are clearer than the engine's.
    pub(crate) fn any() -> Signature {
        Signature::variadic_any(Volatility::Immutable)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).finish_non_exhaustive()
    }
}

/// There is one function of each name.
impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        (self.takes)(types).map(|types| (self.gives)(&types)).map_err(|sentence| refused(self.name, &sentence))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let types: Vec<DataType> = arrays.iter().map(|array| array.data_type().clone()).collect();
        let types = (self.takes)(&types).map_err(|sentence| refused(self.name, &sentence))?;
        let arrays: Vec<ArrayRef> = arrays.iter().zip(&types).map(|(array, to)| Ok(cast(array, to)?)).collect::<Result<_>>()?;
        let result = (self.body)(&arrays).map_err(|sentence| refused(self.name, &sentence))?;
        Ok(if scalar { ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?) } else { ColumnarValue::Array(result) })
    }
}

/// What a function says about a mistake.
pub(crate) fn refused(name: &str, sentence: &str) -> DataFusionError {
    DataFusionError::Plan(format!("{name}: {sentence}"))
}

/// `bin(value, width)`: the time or number at which the bin begins that `value` lies in.
fn bin() -> Function {
    let takes = |types: &[DataType]| match types {
        [DataType::Timestamp(unit, zone), DataType::Interval(_) | DataType::Duration(_)] => {
            Ok(vec![DataType::Timestamp(*unit, zone.clone()), DataType::Interval(IntervalUnit::MonthDayNano)])
        }
        [DataType::Date32 | DataType::Date64, DataType::Interval(_) | DataType::Duration(_)] => {
            Ok(vec![DataType::Timestamp(TimeUnit::Microsecond, None), DataType::Interval(IntervalUnit::MonthDayNano)])
        }
        [value, width] if value.is_integer() && width.is_integer() => Ok(vec![DataType::Int64; 2]),
        [value, width] if value.is_numeric() && width.is_numeric() => Ok(vec![DataType::Float64; 2]),
        [DataType::Null, width] if width.is_numeric() => Ok(vec![width.clone(); 2]),
        _ => Err("takes a time and an interval, or two numbers; for example bin(time, INTERVAL '5 minutes')".to_owned()),
    };
    let body = |arguments: &[ArrayRef]| {
        let [values, widths] = arguments else { return Err("takes two arguments".to_owned()) };
        match values.data_type() {
            DataType::Timestamp(unit, _) => bin_times(values, *unit, widths),
            DataType::Float64 => {
                let pairs = values.as_primitive::<Float64Type>().iter().zip(widths.as_primitive::<Float64Type>());
                let binned = pairs.map(|(value, width)| match (value, width) {
                    (Some(value), Some(width)) if width > 0.0 => Ok(time::bin_real(value, width)),
                    (_, Some(_)) => Err(NOT_POSITIVE.to_owned()),
                    (_, None) => Ok(None),
                });
                Ok(Arc::new(binned.collect::<Result<Float64Array, String>>()?))
            }
            _ => {
                let values = cast(values, &DataType::Int64).map_err(|error| error.to_string())?;
                let widths = cast(widths, &DataType::Int64).map_err(|error| error.to_string())?;
                bin_whole(&values, widths.as_primitive::<Int64Type>().iter().map(Ok))
            }
        }
    };
    Function {
        name: "bin",
        takes: Box::new(takes),
        gives: Box::new(|types| types.first().cloned().unwrap_or(DataType::Null)),
        body: Box::new(body),
        signature: Function::any(),
    }
}

const NOT_POSITIVE: &str = "the width of a bin must be more than nothing";

fn bin_times(values: &ArrayRef, unit: TimeUnit, widths: &ArrayRef) -> Result<ArrayRef, String> {
    let unit_nanos = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    let widths = widths.as_primitive::<IntervalMonthDayNanoType>().iter().map(|width| match width.map(nanos).transpose()? {
        Some(nanos) if nanos % unit_nanos != 0 => Err(format!("the width of a bin must be a multiple of {unit_nanos} ns here")),
        nanos => Ok(nanos.map(|nanos| nanos / unit_nanos)),
    });
    let whole = cast(values, &DataType::Int64).map_err(|error| error.to_string())?;
    let binned = bin_whole(&whole, widths)?;
    cast(&binned, values.data_type()).map_err(|error| error.to_string())
}

fn bin_whole(values: &ArrayRef, widths: impl Iterator<Item = Result<Option<i64>, String>>) -> Result<ArrayRef, String> {
    let binned = values.as_primitive::<Int64Type>().iter().zip(widths).map(|(value, width)| match (value, width?) {
        (_, Some(..=0)) => Err(NOT_POSITIVE.to_owned()),
        (Some(value), Some(width)) => Ok(time::bin(value, width)),
        _ => Ok(None),
    });
    Ok(Arc::new(binned.collect::<Result<Int64Array, String>>()?))
}

/// How long an interval is.
pub(crate) fn nanos(interval: IntervalMonthDayNano) -> Result<i64, String> {
    if interval.months != 0 {
        return Err("a month is not always as long: use days, hours, minutes or seconds".to_owned());
    }
    let days = i64::from(interval.days).checked_mul(DAY_NANOS);
    days.and_then(|days| days.checked_add(interval.nanoseconds)).ok_or_else(|| "the interval is too long".to_owned())
}

/// `ipv4_is_private(address)`: whether it lies in 10/8, 172.16/12 or 192.168/16; NULL for what is not IPv4.
fn ipv4_is_private() -> Function {
    Function {
        name: "ipv4_is_private",
        takes: Box::new(|types| match types {
            [address] => Ok(vec![address_type(address)?]),
            _ => Err("takes one address; for example ipv4_is_private(sourceIPAddress)".to_owned()),
        }),
        gives: Box::new(|_| DataType::Boolean),
        body: Box::new(|arguments| {
            let [addresses] = arguments else { return Err("takes one address".to_owned()) };
            Ok(Arc::new(over_ipv4(addresses, |_, address| ipv4::ipv4_is_private(address))))
        }),
        signature: Function::any(),
    }
}

/// `ipv4_is_in_range(address, prefix)`: whether it lies in a prefix such as `192.0.2.0/24`; NULL for what is not IPv4.
fn ipv4_is_in_range() -> Function {
    Function {
        name: "ipv4_is_in_range",
        takes: Box::new(|types| match types {
            [address, range] if range.is_string() || *range == DataType::Null => Ok(vec![address_type(address)?, DataType::Utf8]),
            _ => Err("takes an address and a prefix; for example ipv4_is_in_range(sourceIPAddress, '192.0.2.0/24')".to_owned()),
        }),
        gives: Box::new(|_| DataType::Boolean),
        body: Box::new(|arguments| {
            let [addresses, ranges] = arguments else { return Err("takes an address and a prefix".to_owned()) };
            let ranges = ranges.as_string::<i32>();
            let within = |row, address: &str| ipv4::ipv4_is_in_range(address, ranges.is_valid(row).then(|| ranges.value(row))?);
            Ok(Arc::new(over_ipv4(addresses, within)))
        }),
        signature: Function::any(),
    }
}

/// An address comes as text, or as 16 bytes.
fn address_type(given: &DataType) -> Result<DataType, String> {
    match given {
        text if text.is_string() || *text == DataType::Null => Ok(DataType::Utf8),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(16) => Ok(DataType::Binary),
        other => Err(format!("an address is text or 16 bytes, not {other}")),
    }
}

/// What `answer` says to each row and the text of its address.
fn over_ipv4(addresses: &ArrayRef, answer: impl Fn(usize, &str) -> Option<bool>) -> BooleanArray {
    match addresses.data_type() {
        DataType::Binary => {
            let text = |bytes: &[u8]| Some(Address(u128::from_be_bytes(bytes.try_into().ok()?)).as_v4()?.to_string());
            addresses.as_binary::<i32>().iter().enumerate().map(|(row, bytes)| answer(row, &text(bytes?)?)).collect()
        }
        _ => addresses.as_string::<i32>().iter().enumerate().map(|(row, text)| answer(row, text?)).collect(),
    }
}
