// Each of these is one line on stderr and exit code 1, and leaves no output file.

// RUN: not qfuse-opt %s --qfuse-fuse-epilog 2>&1 | filecheck %s --check-prefix NAME
// NAME: qfuse-opt: error: unknown pass 'qfuse-fuse-epilog'; nearest: qfuse-fuse-epilogue

// RUN: not qfuse-opt %s --canonicalise 2>&1 | filecheck %s --check-prefix UPSTREAM
// UPSTREAM: qfuse-opt: error: unknown pass 'canonicalise'; nearest: canonicalize

// RUN: not qfuse-opt %s --qfuse-fuse-epilogue=stage=bias 2>&1 | filecheck %s --check-prefix OPTION
// OPTION: qfuse-opt: error: qfuse-fuse-epilogue has no option 'stage' (options: stages); did you mean 'stages'?

// RUN: not qfuse-opt %s --qfuse-fuse-norm-quantize=residual=maybe 2>&1 | filecheck %s --check-prefix VALUE
// VALUE: qfuse-opt: error: qfuse-fuse-norm-quantize: residual=maybe is not true or false

// RUN: not qfuse-opt %s --pass-pipeline='module(cse)' 2>&1 | filecheck %s --check-prefix FORM
// FORM: qfuse-opt: error: pipeline 'module(cse)' is not of the form builtin.module(pass,...)

// RUN: not qfuse-opt %s --pass-pipeline= 2>&1 | filecheck %s --check-prefix EMPTY
// EMPTY: qfuse-opt: error: pipeline '' is not of the form builtin.module(pass,...)

// RUN: not qfuse-opt %s --= 2>&1 | filecheck %s --check-prefix NAMELESS
// NAMELESS: qfuse-opt: error: a pass without a name; see --list-passes

// RUN: head -c 4000 %python | not qfuse-translate --to=ttir 2>&1 | filecheck %s --check-prefix BINARY
// BINARY: qfuse-translate: error: cannot read -: not a text file

// RUN: not qfuse-opt %s --pass-pipeline='builtin.module(func.func(cse)' 2>&1 | filecheck %s --check-prefix BRACKET
// BRACKET: qfuse-opt: error: pipeline: unbalanced brackets

// RUN: not qfuse-opt %s --pass-pipeline='builtin.module(func.func(qfuse-fuse-rope))' 2>&1 | filecheck %s --check-prefix NESTED
// NESTED: qfuse-opt: error: qfuse-fuse-rope runs on builtin.module; take it out of 'func.func(qfuse-fuse-rope)'

// RUN: not qfuse-opt %t.nowhere.mlir 2>&1 | filecheck %s --check-prefix MISSING
// MISSING: qfuse-opt: error: cannot read {{.*}}nowhere.mlir: No such file or directory

// RUN: not qfuse-opt %s --cse -o %s/out.mlir 2>&1 | filecheck %s --check-prefix WRITE
// WRITE: qfuse-opt: error: cannot write {{.*}}out.mlir: {{Not a directory|File exists}}

// RUN: echo 'func.func @f( {' > %t.bad.mlir && rm -f %t.out.mlir && not qfuse-opt %t.bad.mlir -o %t.out.mlir 2>&1 | filecheck %s --check-prefix PARSE
// PARSE: bad.mlir:1:{{[0-9]+}}: error: expected
// PARSE-NOT: Traceback
// RUN: not test -e %t.out.mlir

// RUN: not qfuse-opt %s %s 2>&1 | filecheck %s --check-prefix TWO
// TWO: qfuse-opt: error: unexpected argument

// RUN: not qfuse-opt %s --remarks=xml 2>&1 | filecheck %s --check-prefix CHOICE
// CHOICE: qfuse-opt: error: argument --remarks: invalid choice: 'xml'

// RUN: not qfuse-opt %s -o 2>&1 | filecheck %s --check-prefix ARGUMENT
// ARGUMENT: qfuse-opt: error: argument -o: expected one argument

func.func @f() {
  return
}
