// A bundle's model on ONNX Runtime's C API: one float32 input and output, no other library, no Python.
//
//   ORT=path/to/onnxruntime-linux-x64    (a release of ONNX Runtime)
//   g++ -std=c++17 -I$ORT/include scripts/examples/infer.cpp -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o infer
//   ./infer out/digits_resnet/model.onnx x output 1 1 8 8 < input.bin > output.bin
//
// The shape of the input follows the names; input.bin and output.bin hold its numbers, little-endian. Exit code 1, with
// ONNX Runtime's message, where anything fails.

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

const OrtApi* api = nullptr;

void require(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  api->ReleaseStatus(status);
  std::exit(1);
}

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) refuse("usage: infer MODEL INPUT OUTPUT SIZE... < input.bin > output.bin");
  api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) refuse("this ONNX Runtime is older than its headers");

  std::vector<int64_t> shape;
  size_t elements = 1;
  for (int i = 4; i < count; ++i) {
    shape.push_back(std::strtoll(words[i], nullptr, 10));
    if (shape.back() < 1) refuse("a size is a whole number from 1 on");
    elements *= static_cast<size_t>(shape.back());
  }
  std::vector<float> numbers(elements);
  if (std::fread(numbers.data(), sizeof(float), elements, stdin) != elements) refuse("input.bin is too short");

  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  require(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "infer", &env));
  require(api->CreateSessionOptions(&options));
  require(api->CreateSession(env, words[1], options, &session));

  OrtMemoryInfo* memory = nullptr;
  OrtValue* input = nullptr;
  require(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  require(api->CreateTensorWithDataAsOrtValue(memory, numbers.data(), elements * sizeof(float), shape.data(),
                                              shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));

  const char* takes[] = {words[2]};
  const char* gives[] = {words[3]};
  const OrtValue* inputs[] = {input};
  OrtValue* output = nullptr;
  require(api->Run(session, nullptr, takes, inputs, 1, gives, 1, &output));

  OrtTensorTypeAndShapeInfo* told = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t size = 0;
  void* data = nullptr;
  require(api->GetTensorTypeAndShape(output, &told));
  require(api->GetTensorElementType(told, &type));
  require(api->GetTensorShapeElementCount(told, &size));
  if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) refuse("the output is not float32");
  require(api->GetTensorMutableData(output, &data));
  if (std::fwrite(data, sizeof(float), size, stdout) != size) refuse("output.bin cannot be written");

  api->ReleaseTensorTypeAndShapeInfo(told);
  api->ReleaseValue(output);
  api->ReleaseValue(input);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return 0;
}
