# Adds the pinned ggml to the build as targets ggml, ggml-base, ggml-cpu (static).
set(SDENGINE_GGML_DIR "" CACHE PATH "ggml sources to use instead of the pinned download")
if(SDENGINE_GGML_DIR)
  set(ggml_source "${SDENGINE_GGML_DIR}")
else()
  set(ggml_source "${CMAKE_BINARY_DIR}/ggml-source")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/fetch.py" "${ggml_source}"
    RESULT_VARIABLE ggml_fetched)
  if(NOT ggml_fetched EQUAL 0)
    message(FATAL_ERROR "ggml could not be downloaded with pip (see above). Offline? Unpack ggml yourself "
                        "and pass -DSDENGINE_GGML_DIR=<folder>.")
  endif()
endif()

set(BUILD_SHARED_LIBS OFF)
set(GGML_LLAMAFILE ON CACHE BOOL "tinyBLAS matrix products: about twice as fast as plain ggml")
# Our threads live as long as a pipeline (ggml's own pool); libgomp would add a second, process-wide pool.
set(GGML_OPENMP OFF CACHE BOOL "")
set(GGML_BUILD_TESTS OFF CACHE BOOL "")
set(GGML_BUILD_EXAMPLES OFF CACHE BOOL "")
add_subdirectory("${ggml_source}" "${CMAKE_BINARY_DIR}/ggml" EXCLUDE_FROM_ALL)
