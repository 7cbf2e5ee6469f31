// The ONNX Runtime operators ai.onnxq::GSEDequantizeLinear and ai.onnxq::PackedDequantizeLinear.
//
// Attributes: bits, group_size, shape, exponent_base (GSE only), axis (optional; rows lie along axis 0, so it
// must be 0). Inputs: packed and exponents, or packed, scale and zero_point. The model-local function of the same
// name takes tables behind these; they are declared here, so that one node serves both, and never read.
// Whatever a model holds, the outcome is an output or a status that names the node.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "decode.h"
#include "export.h"

namespace {

constexpr const char* kDomain = "ai.onnxq";

// Nothing newer is used, so that a library built with the newest headers runs in older ONNX Runtimes.
constexpr uint32_t kApiVersion = ORT_API_VERSION < 23 ? ORT_API_VERSION : 23;

[[noreturn]] void reject(const std::string& text) { throw Ort::Exception(std::string(text), ORT_INVALID_ARGUMENT); }

// Runs `body` and turns what it throws into a status that begins with `who`.
template <class Body>
OrtStatusPtr guarded(const std::string& who, Body body) {
  const auto failed = [&](OrtErrorCode code, const char* text) {
    return Ort::GetApi().CreateStatus(code, (who + text).c_str());
  };
  try {
    body();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return failed(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return failed(ORT_FAIL, error.what());
  } catch (...) {
    return failed(ORT_FAIL, "unknown error");
  }
}

std::string listed(const std::vector<int64_t>& numbers) {
  std::string text = "[";
  for (size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + "]";
}

int64_t integer(const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_int64(info, name, &value));
  if (!status.IsOK()) reject("the attribute " + std::string(name) + " (an integer) is missing or of another type");
  return value;
}

// Whether the node has the attribute as anything a user may have meant it to be.
bool present(const OrtKernelInfo* info, const char* name) {
  const OrtApi& api = Ort::GetApi();
  int64_t whole = 0;
  float real = 0;
  size_t size = 0;
  bool found = false;
  for (OrtStatusPtr raw :
       {api.KernelInfoGetAttribute_int64(info, name, &whole), api.KernelInfoGetAttribute_float(info, name, &real),
        api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size),
        api.KernelInfoGetAttributeArray_float(info, name, nullptr, &size),
        api.KernelInfoGetAttribute_string(info, name, nullptr, &size)}) {
    found |= Ort::Status(raw).IsOK();
  }
  return found;
}

// The attributes that both operators have, checked.
struct Attributes {
  int64_t bits, group_size;
  int64_t exponent_base = 0;
  std::vector<int64_t> shape;
  onnxq::Layout layout;
  onnxq::Isa isa = onnxq::kScalar;

  explicit Attributes(const OrtKernelInfo* info)
      : bits(integer(info, "bits")), group_size(integer(info, "group_size")) {
    try {
      shape = Ort::ConstKernelInfo(info).GetAttributes<int64_t>("shape");
    } catch (const Ort::Exception&) {
      reject("the attribute shape (integers) is missing or of another type");
    }
    if (present(info, "axis") && integer(info, "axis") != 0) reject("axis must be 0");
    check(onnxq::make_layout(bits, shape.data(), shape.size(), group_size, &layout));
    check(onnxq::resolve_isa(onnxq::kBestIsa, &isa));
  }

  void check(onnxq::Status status) const {
    if (status == onnxq::kOk) return;
    std::string text = onnxq::status_text(status);
    text +=
        " (bits " + std::to_string(bits) + ", group_size " + std::to_string(group_size) + ", shape " + listed(shape);
    if (status == onnxq::kBadExponentBase) text += ", exponent_base " + std::to_string(exponent_base);
    reject(text + ")");
  }
};

template <class T>
struct Input {
  const T* data = nullptr;
  size_t count = 0;

  Input(const Ort::KernelContext& context, size_t index, ONNXTensorElementDataType type, const char* name) {
    const Ort::ConstValue value = context.GetInput(index);
    if (!value || !value.IsTensor()) reject(std::string(name) + " is missing");
    const auto info = value.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != type) reject(std::string(name) + " has the wrong type");
    count = info.GetElementCount();
    data = static_cast<const T*>(value.GetTensorRawData());
  }
};

// The output. Call it when the inputs were found to be long enough: no shape alone may make anyone allocate.
float* output(Ort::KernelContext& context, const Attributes& attributes) {
  const auto& shape = attributes.shape;
  return context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
}

class GseKernel {
 public:
  static constexpr const char* kName = "GSEDequantizeLinear";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8};
  static constexpr size_t kTables = 10;

  GseKernel(const OrtKernelInfo* info, std::string who) : who_(std::move(who)), attributes_(info) {
    attributes_.exponent_base = integer(info, "exponent_base");
    attributes_.check(onnxq::check_exponent_base(attributes_.exponent_base, attributes_.layout.bits));
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) const {
    return guarded(who_, [&] {
      Ort::KernelContext context(raw);
      const Input<uint8_t> packed(context, 0, kInputs[0], "packed");
      const Input<uint8_t> exponents(context, 1, kInputs[1], "exponents");
      const onnxq::Layout& layout = attributes_.layout;
      if (packed.count < layout.packed_bytes) attributes_.check(onnxq::kPackedTooShort);
      if (exponents.count < layout.exponent_bytes) attributes_.check(onnxq::kExponentsTooShort);
      const onnxq::GseWeight weight{layout,         packed.data,     packed.count,
                                    exponents.data, exponents.count, static_cast<int>(attributes_.exponent_base)};
      const auto values = static_cast<size_t>(layout.values);
      attributes_.check(onnxq::decode(weight, output(context, attributes_), values, attributes_.isa));
    });
  }

 private:
  std::string who_;
  Attributes attributes_;
};

class PackedKernel {
 public:
  static constexpr const char* kName = "PackedDequantizeLinear";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8};
  static constexpr size_t kTables = 6;

  PackedKernel(const OrtKernelInfo* info, std::string who) : who_(std::move(who)), attributes_(info) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) const {
    return guarded(who_, [&] {
      Ort::KernelContext context(raw);
      const Input<uint8_t> packed(context, 0, kInputs[0], "packed");
      const Input<uint16_t> scale(context, 1, kInputs[1], "scale");
      const Input<int8_t> zero_point(context, 2, kInputs[2], "zero_point");
      const onnxq::Layout& layout = attributes_.layout;
      const size_t groups = std::min(scale.count, zero_point.count);
      if (packed.count < layout.packed_bytes) attributes_.check(onnxq::kPackedTooShort);
      if (groups < layout.groups) attributes_.check(onnxq::kScalesTooShort);
      const onnxq::AffineWeight weight{layout, packed.data, packed.count, scale.data, zero_point.data, groups};
      const auto values = static_cast<size_t>(layout.values);
      attributes_.check(onnxq::decode(weight, output(context, attributes_), values, attributes_.isa));
    });
  }

 private:
  std::string who_;
  Attributes attributes_;
};

// The output's shape at load time, so that ONNX Runtime may plan with it. What is wrong with the node is said by
// the kernel, which knows its name; here it only means that nothing is inferred.
OrtStatusPtr infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  const OrtApi& api = Ort::GetApi();
  const OrtOpAttr* attribute = nullptr;
  if (!Ort::Status(api.ShapeInferContext_GetAttribute(context, "shape", &attribute)).IsOK()) return nullptr;
  int64_t sizes[64];
  size_t bytes = 0;
  if (!Ort::Status(api.ReadOpAttr(attribute, ORT_OP_ATTR_INTS, sizes, sizeof sizes, &bytes)).IsOK()) return nullptr;
  const size_t rank = bytes / sizeof sizes[0];
  if (rank == 0 || std::any_of(sizes, sizes + rank, [](int64_t size) { return size < 1; })) return nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  OrtStatusPtr status = api.CreateTensorTypeAndShapeInfo(&info);
  if (status == nullptr) status = api.SetTensorElementType(info, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  if (status == nullptr) status = api.SetDimensions(info, sizes, rank);
  if (status == nullptr) {
    const char* names[64] = {};
    std::fill(names, names + rank, "");
    status = api.SetSymbolicDimensions(info, names, rank);
  }
  if (status == nullptr) status = api.ShapeInferContext_SetOutputTypeShape(context, 0, info);
  if (info != nullptr) api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

template <class Kernel>
struct Op : Ort::CustomOpBase<Op<Kernel>, Kernel, true> {
  static constexpr size_t kRequired = sizeof(Kernel::kInputs) / sizeof(Kernel::kInputs[0]);

  Op() {
    OrtCustomOp::version = kApiVersion;
    OrtCustomOp::InferOutputShapeFn = infer_shape;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    std::string who = Kernel::kName;
    return guarded("", [&] {
      who += " node '" + Ort::ConstKernelInfo(info).GetNodeName() + "': ";
      OrtStatusPtr status = guarded(who, [&] { *kernel = new Kernel(info, who); });
      Ort::ThrowOnError(status);
    });
  }

  const char* GetName() const { return Kernel::kName; }
  size_t GetInputTypeCount() const { return kRequired + Kernel::kTables; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    return index < kRequired ? Kernel::kInputs[index] : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // any
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < kRequired ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

// Sessions refer to the domain until the process ends, at which ONNX Runtime may be gone already: never freed.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const built = [] {
    static const Op<GseKernel> gse;
    static const Op<PackedKernel> packed;
    Ort::CustomOpDomain fresh(kDomain);
    fresh.Add(&gse);
    fresh.Add(&packed);
    return fresh.release();
  }();
  return built;
}

}  // namespace

ONNXQ_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    // CreateStatus stands at the same place in every version: ask an older one to carry the bad news.
    for (uint32_t version = kApiVersion - 1; version > 0; --version) {
      if (const OrtApi* older = base->GetApi(version)) {
        const std::string text = "onnxq's operators need ONNX Runtime 1." + std::to_string(kApiVersion) +
                                 " or newer, this one is " + base->GetVersionString();
        return older->CreateStatus(ORT_NOT_IMPLEMENTED, text.c_str());
      }
    }
    return nullptr;  // no known version at all: the session will say that it does not know the operators
  }
  Ort::InitApi(api);
  return guarded("onnxq: ", [&] { Ort::ThrowOnError(api->AddCustomOpDomain(options, domain())); });
}
