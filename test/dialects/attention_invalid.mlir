// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

func.func @types(%q: tensor<1x?x4x64xbf16>, %k: tensor<1x2x8x64xf32>, %p: tensor<?xi64>) {
  // expected-error @+1 {{k is tensor<1x2x8x64xf32>; q, k and v are floats of one type, with four dimensions}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x4x64xbf16>, tensor<1x2x8x64xf32>, tensor<1x2x8x64xf32>, tensor<?xi64>) -> tensor<1x?x4x64xbf16>
  return
}

// -----

func.func @position(%q: tensor<1x?x4x64xbf16>, %k: tensor<1x2x8x64xbf16>, %p: tensor<?xi32>) {
  // expected-error @+1 {{position is tensor<?xi32>; expected tensor<?xi64>}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x4x64xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x64xbf16>, tensor<?xi32>) -> tensor<1x?x4x64xbf16>
  return
}

// -----

func.func @heads(%q: tensor<1x?x?x64xbf16>, %k: tensor<1x2x8x64xbf16>, %p: tensor<?xi64>) {
  // expected-error @+1 {{heads or widths of q tensor<1x?x?x64xbf16>}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x?x64xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x64xbf16>, tensor<?xi64>) -> tensor<1x?x?x64xbf16>
  return
}

// -----

func.func @widths(%q: tensor<1x?x4x32xbf16>, %k: tensor<1x2x8x64xbf16>, %p: tensor<?xi64>) {
  // expected-error @+1 {{widths of q and k, and caches, must agree}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x4x32xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x64xbf16>, tensor<?xi64>) -> tensor<1x?x4x64xbf16>
  return
}

// -----

func.func @groups(%q: tensor<1x?x3x64xbf16>, %k: tensor<1x2x8x64xbf16>, %p: tensor<?xi64>) {
  // expected-error @+1 {{3 heads of q are no multiple of the 2 of k}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x3x64xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x64xbf16>, tensor<?xi64>) -> tensor<1x?x3x64xbf16>
  return
}

// -----

func.func @window(%q: tensor<1x?x4x64xbf16>, %k: tensor<1x2x8x64xbf16>, %p: tensor<?xi64>) {
  // expected-error @+1 {{window is -1; it is 0 for none}}
  %y = "qfuse.attention"(%q, %k, %k, %p) {scale = 0.125 : f64, window = -1 : i64} : (tensor<1x?x4x64xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x64xbf16>, tensor<?xi64>) -> tensor<1x?x4x64xbf16>
  return
}

// -----

func.func @result(%q: tensor<1x?x4x64xbf16>, %k: tensor<1x2x8x64xbf16>, %v: tensor<1x2x8x32xbf16>, %p: tensor<?xi64>) {
  // expected-error @+1 {{result is tensor<1x?x4x64xbf16>; expected tensor<1x?x4x32xbf16>}}
  %y = "qfuse.attention"(%q, %k, %v, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x4x64xbf16>, tensor<1x2x8x64xbf16>, tensor<1x2x8x32xbf16>, tensor<?xi64>) -> tensor<1x?x4x64xbf16>
  return
}
