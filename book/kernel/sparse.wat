;; A pruned generator's arithmetic, in WebAssembly's text form. The book's build assembles it (tools/kernel.py).
;;
;; A dense convolution multiplies by every weight. This one keeps a list of the weights that are left, and walks it.
;; One weight serves 32 images at once: their values of one pixel lie side by side in memory, so that eight registers
;; of four numbers hold a pixel of all 32, and a weight that was pruned costs nothing at all, whatever the pattern.
;; (Direct sparse convolution: Park et al. 2017. The batch innermost is what makes it pay for generators.)
;;
;; The memory, which JavaScript lays out (book/_static/in-your-browser/network.js):
;;
;;   pixel    32 numbers, one per image: 128 bytes
;;   buffer   pixels of one layer's input, channel by channel, row by row, with a frame of zeros around each channel
;;   tap      one weight that is left, 8 bytes: where its input pixel lies, in bytes from the first one; the weight
;;   record   one output channel (of one phase, if the layer enlarges), 24 bytes:
;;              0 address of its first output pixel     4 address of its first tap    8 address behind its last tap
;;             12 bias                                 16 rows of pixels             20 pixels in a row
(module
  (import "env" "memory" (memory 1))

  ;; One layer: every record from $record to $end. A step is the way in bytes from one pixel to the next one.
  (func (export "layer")
    (param $record i32) (param $end i32)
    (param $input i32) (param $input_down i32) (param $input_right i32)
    (param $output_down i32) (param $output_right i32)
    (param $slope f32)            ;; of the activation below zero: 0 is ReLU, 1 is none, between them leaky ReLU
    (local $row i32) (local $column i32)
    (local $source_row i32) (local $source i32) (local $target_row i32) (local $target i32)
    (local $tap i32) (local $last_tap i32) (local $pixel i32)
    (local $w v128) (local $slopes v128)        ;; the weight of a tap, and the slope, four times each
    (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)   ;; the sums of 32 images
    (local $s4 v128) (local $s5 v128) (local $s6 v128) (local $s7 v128)

    (local.set $slopes (f32x4.splat (local.get $slope)))
    (block $no_record
      (loop $records
        (br_if $no_record (i32.ge_u (local.get $record) (local.get $end)))
        (local.set $last_tap (i32.load offset=8 (local.get $record)))
        (local.set $source_row (local.get $input))
        (local.set $target_row (i32.load (local.get $record)))
        (local.set $row (i32.load offset=16 (local.get $record)))

        (loop $rows
          (local.set $source (local.get $source_row))
          (local.set $target (local.get $target_row))
          (local.set $column (i32.load offset=20 (local.get $record)))

          (loop $columns
            ;; Each sum begins with the bias.
            (local.set $s0 (v128.load32_splat offset=12 (local.get $record)))
            (local.set $s1 (local.get $s0)) (local.set $s2 (local.get $s0)) (local.set $s3 (local.get $s0))
            (local.set $s4 (local.get $s0)) (local.set $s5 (local.get $s0)) (local.set $s6 (local.get $s0))
            (local.set $s7 (local.get $s0))

            ;; The heart: one weight times 32 numbers, for every weight that is left.
            (local.set $tap (i32.load offset=4 (local.get $record)))
            (block $no_tap
              (loop $taps
                (br_if $no_tap (i32.ge_u (local.get $tap) (local.get $last_tap)))
                (local.set $pixel
                  (i32.add (local.get $source) (i32.load (local.get $tap))))
                (local.set $w (v128.load32_splat offset=4 (local.get $tap)))
                (local.set $s0 (f32x4.add (local.get $s0)
                  (f32x4.mul (local.get $w) (v128.load (local.get $pixel)))))
                (local.set $s1 (f32x4.add (local.get $s1)
                  (f32x4.mul (local.get $w) (v128.load offset=16 (local.get $pixel)))))
                (local.set $s2 (f32x4.add (local.get $s2)
                  (f32x4.mul (local.get $w) (v128.load offset=32 (local.get $pixel)))))
                (local.set $s3 (f32x4.add (local.get $s3)
                  (f32x4.mul (local.get $w) (v128.load offset=48 (local.get $pixel)))))
                (local.set $s4 (f32x4.add (local.get $s4)
                  (f32x4.mul (local.get $w) (v128.load offset=64 (local.get $pixel)))))
                (local.set $s5 (f32x4.add (local.get $s5)
                  (f32x4.mul (local.get $w) (v128.load offset=80 (local.get $pixel)))))
                (local.set $s6 (f32x4.add (local.get $s6)
                  (f32x4.mul (local.get $w) (v128.load offset=96 (local.get $pixel)))))
                (local.set $s7 (f32x4.add (local.get $s7)
                  (f32x4.mul (local.get $w) (v128.load offset=112 (local.get $pixel)))))
                (local.set $tap (i32.add (local.get $tap) (i32.const 8)))
                (br $taps)))

            ;; The activation, the larger of x and slope times x, on the way to memory.
            (v128.store (local.get $target)
              (f32x4.max (local.get $s0) (f32x4.mul (local.get $slopes) (local.get $s0))))
            (v128.store offset=16 (local.get $target)
              (f32x4.max (local.get $s1) (f32x4.mul (local.get $slopes) (local.get $s1))))
            (v128.store offset=32 (local.get $target)
              (f32x4.max (local.get $s2) (f32x4.mul (local.get $slopes) (local.get $s2))))
            (v128.store offset=48 (local.get $target)
              (f32x4.max (local.get $s3) (f32x4.mul (local.get $slopes) (local.get $s3))))
            (v128.store offset=64 (local.get $target)
              (f32x4.max (local.get $s4) (f32x4.mul (local.get $slopes) (local.get $s4))))
            (v128.store offset=80 (local.get $target)
              (f32x4.max (local.get $s5) (f32x4.mul (local.get $slopes) (local.get $s5))))
            (v128.store offset=96 (local.get $target)
              (f32x4.max (local.get $s6) (f32x4.mul (local.get $slopes) (local.get $s6))))
            (v128.store offset=112 (local.get $target)
              (f32x4.max (local.get $s7) (f32x4.mul (local.get $slopes) (local.get $s7))))

            (local.set $source (i32.add (local.get $source) (local.get $input_right)))
            (local.set $target (i32.add (local.get $target) (local.get $output_right)))
            (br_if $columns (local.tee $column (i32.sub (local.get $column) (i32.const 1)))))

          (local.set $source_row (i32.add (local.get $source_row) (local.get $input_down)))
          (local.set $target_row (i32.add (local.get $target_row) (local.get $output_down)))
          (br_if $rows (local.tee $row (i32.sub (local.get $row) (i32.const 1)))))

        (local.set $record (i32.add (local.get $record) (i32.const 24)))
        (br $records))))

  ;; The hyperbolic tangent of every number from $at to $end, in place, four at a time.
  ;;
  ;; Lambert's continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))), cut off after 13, is as good as exact for small
  ;; arguments. So it gives t = tanh(x/2), and tanh x = 2t / (1 + t^2). Beyond 9 the result is 1 to the last digit.
  (func (export "tanh") (param $at i32) (param $end i32)
    (local $half v128) (local $square v128) (local $t v128)
    (block $done
      (loop $numbers
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $half (f32x4.mul (f32x4.splat (f32.const 0.5))
          (f32x4.min (f32x4.splat (f32.const 9)) (f32x4.max (f32x4.splat (f32.const -9)) (v128.load (local.get $at))))))
        (local.set $square (f32x4.mul (local.get $half) (local.get $half)))
        (local.set $t (f32x4.splat (f32.const 13)))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 11)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 9)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 7)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 5)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 3)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.add (f32x4.splat (f32.const 1)) (f32x4.div (local.get $square) (local.get $t))))
        (local.set $t (f32x4.div (local.get $half) (local.get $t)))
        (v128.store (local.get $at) (f32x4.div
          (f32x4.add (local.get $t) (local.get $t))
          (f32x4.add (f32x4.splat (f32.const 1)) (f32x4.mul (local.get $t) (local.get $t)))))
        (local.set $at (i32.add (local.get $at) (i32.const 16)))
        (br $numbers))))
)
